"""What one VM should be: the arguments of `@pytest.mark.virtainer`, checked.

`merge` folds layers of arguments (options, `virtainer_defaults`, outer and inner markers) into one `Spec`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config import architecture, network_spec, parsing
from pytest_virtainers.config.network_spec import DEFAULT, NetworkSpec, NicSpec
from pytest_virtainers.config.prepare_digest import digest
from pytest_virtainers.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address

    from pytest_virtainers.vm.vm import VM

SHARING = ("reset", "scope")
SCOPES = ("function", "class", "module", "session")
_VARIABLES = ("CIDR", "DISK_CACHE", "OS_VARIANT", "SHUTDOWN_TIMEOUT")  # docs/runtime-image.md


def _mapping(value: object) -> dict[str, Any]:
    """Take what cloud-init reads: a mapping, its YAML as text, or the path of a file with it."""
    import yaml  # only tests that carry user-data pay for it

    if isinstance(value, Path):
        try:
            value = value.read_text()
        except OSError as error:
            raise ValueError(f"the file cannot be read ({error.strerror})") from error
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, Mapping):
        raise ValueError(  # noqa: TRY004  (one error type for all parsers)
            "a mapping is needed, to which ours can be added (as a dict, as YAML text, or as a pathlib.Path), not "
            f"{'nothing' if value is None else type(value).__name__}"
        )
    return dict(value)


def _image(value: object) -> str:
    return str(value) if isinstance(value, Path) else parsing.text(value)


def _packages(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("a list of package names is needed")
    return tuple(value)


def _run_commands(value: object) -> tuple[str | list[str], ...]:
    def is_command(one: object) -> bool:
        return isinstance(one, str) or (isinstance(one, list | tuple) and all(isinstance(a, str) for a in one))

    if not isinstance(value, list | tuple) or not all(is_command(one) for one in value):
        raise ValueError("a list of commands is needed, each a text for the shell or a list of words")
    return tuple(one if isinstance(one, str) else list(one) for one in value)


def _files(value: object) -> dict[str, bytes]:
    """Take `{guest path: content}`; a content is text, bytes or the path of a local file."""
    if not isinstance(value, Mapping):
        raise ValueError("a mapping from guest paths to contents is needed")  # noqa: TRY004
    taken = {}
    for path, content in value.items():
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f"{path!r} is not an absolute path in the guest")
        if isinstance(content, Path):
            try:
                taken[path] = content.read_bytes()
            except OSError as error:
                raise ValueError(f"{content} cannot be read ({error.strerror})") from error
        elif isinstance(content, str | bytes):
            taken[path] = content.encode() if isinstance(content, str) else content
        else:
            raise ValueError(f"the content of {path} is text, bytes or a pathlib.Path")  # noqa: TRY004
    return taken


def _authorized_keys(value: object) -> tuple[str, ...]:
    """Take public keys: lines as in `authorized_keys`, or the paths of files with such lines."""
    if not isinstance(value, list | tuple):
        raise ValueError("a list of public keys is needed")  # noqa: TRY004  (one error type for all parsers)
    lines = []
    for each in value:
        try:
            text = each.read_text() if isinstance(each, Path) else parsing.text(each)
        except OSError as error:
            raise ValueError(f"{each} cannot be read ({error.strerror})") from error
        if "PRIVATE KEY" in text:
            raise ValueError("this is a private key; the public one is in the file whose name ends with .pub")
        lines += [line for line in text.splitlines() if line.strip()]
    return tuple(lines)


def _env(value: object) -> dict[str, str]:
    """Take variables of the runtime image that shape a machine; what most of them may be, the supervisor says."""
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise ValueError("a mapping from names of variables to texts is needed")
    if wrong := value.keys() - _VARIABLES:
        raise ValueError(f"{brief(min(wrong))} is none of {', '.join(_VARIABLES)}; for others there are arguments")
    if (seconds := value.get("SHUTDOWN_TIMEOUT")) and not re.fullmatch("[0-9]{1,5}", seconds):
        raise ValueError(f"SHUTDOWN_TIMEOUT is a number of seconds, not {brief(seconds)}")
    if odd := [name for name, text in value.items() if not text.isprintable()]:
        raise ValueError(f"{min(odd)} has characters that cannot be printed")
    return dict(value)


def _prepare(value: object) -> Callable[[VM], object]:
    if not callable(value):
        raise ValueError("a function that takes the VM is needed")  # noqa: TRY004
    digest(value)  # a ValueError says why its template could not be found again
    return value


@dataclass(frozen=True)
class Spec:
    """One VM, as asked for; sizes in MiB, times in seconds."""

    image: str
    ram: int
    cpus: int
    disk: int
    accel: str
    arch: str
    firmware: str
    boot_timeout: float
    provision_timeout: float
    internet: bool
    scope: str
    template: bool
    env: dict[str, str] = field(default_factory=dict)
    name: str = "vm"
    hostname: str | None = None
    user: str | None = None
    user_data: dict[str, Any] = field(default_factory=dict)
    meta_data: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    run_commands: tuple[str | list[str], ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    authorized_keys: tuple[str, ...] = ()
    prepare: Callable[[VM], object] | None = None
    reset: str = "none"
    identity: str = "template"
    network: NetworkSpec = DEFAULT
    ip: int | IPv4Address | None = None
    nics: tuple[NicSpec, ...] = ()

    def __post_init__(self) -> None:
        """Check what only all arguments together show; raises `SpecError`."""
        try:
            architecture.check_firmware(self.arch, self.firmware)
        except ValueError as error:
            raise SpecError(f"{self.name}: {error}") from None
        if self.network.mode == "wire":
            raise SpecError(
                f"{self.name}: its first card cannot be on {self.network.name}, which is a wire: that is for nics. "
                "A network without a way out is mode isolated"
            )
        if self.network.name in {card.network.name for card in self.nics}:
            raise SpecError(
                f"{self.name}: its first card is on the network {self.network.name} already: nics are for others"
            )

    @property
    def guest_hostname(self) -> str:
        """The name that the guest carries, and by which other VMs find it."""
        return self.hostname or self.name

    @property
    def has_fixed_address(self) -> bool:
        """Whether it wants an address that nobody else may have."""
        return self.ip is not None or any(card.ip not in {"auto", "dhcp", "none"} for card in self.nics)

    @property
    def first_network(self) -> NetworkSpec:
        """The network of its first card, with its mode."""
        return self.network.of_first_card(internet=self.internet)


PARSERS: dict[str, Callable[[Any], Any]] = {
    "name": parsing.host_name,
    "image": _image,
    "ram": parsing.size_mib(least=64),
    "cpus": parsing.whole_number,
    "disk": parsing.size_mib(least=1024),
    "accel": parsing.choice("auto", "kvm", "tcg"),
    "arch": parsing.choice("auto", *architecture.FIRMWARE),
    "firmware": parsing.choice("auto", "bios", "uefi"),
    "env": _env,
    "boot_timeout": parsing.seconds,
    "provision_timeout": parsing.seconds,
    "internet": parsing.switch,
    "scope": parsing.choice(*SCOPES),
    "template": parsing.switch,
    "hostname": parsing.host_name,
    "user": parsing.user_name,
    "user_data": _mapping,
    "meta_data": _mapping,
    "packages": _packages,
    "run_commands": _run_commands,
    "files": _files,
    "authorized_keys": _authorized_keys,
    "prepare": _prepare,
    "reset": parsing.choice("none", "snapshot"),
    "identity": parsing.choice("template", "fresh"),
    "network": network_spec.network,
    "ip": network_spec.address,
    "nics": network_spec.nics,
}
assert PARSERS.keys() == {each.name for each in fields(Spec)}  # noqa: S101  (a slip of ours, seen at import)


def check(arguments: Mapping[str, object], where: str, base: Path | None = None) -> dict[str, Any]:
    """Check arguments of a spec and bring them into their units.

    Args:
        arguments: as a person wrote them.
        where: who wrote them, for the message (a test and its marker, a fixture).
        base: the folder to which relative paths in `user_data` and `files` refer.

    Raises:
        SpecError: an argument is unknown, or its value is not allowed.
    """
    checked = {}
    for name, value in arguments.items():
        if name not in PARSERS:
            near = difflib.get_close_matches(name, PARSERS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SpecError(f"{where}: unknown argument {name!r}; {hint}allowed are {', '.join(PARSERS)}")
        if value is None:
            continue
        try:
            checked[name] = PARSERS[name](_anchored(value, base))
        except ValueError as error:
            raise SpecError(f"{where}: {name}={brief(value)}: {error}") from error
    return checked


def refuse_sharing(arguments: Mapping[str, object], where: str, instead: str) -> None:
    """Raise `SpecError` if an argument says how tests share a machine where they cannot; `instead` says what is."""
    if senseless := [each for each in SHARING if each in arguments]:
        raise SpecError(f"{where}: {senseless[0]} says how tests share a VM; {instead}")


def merge(*layers: Mapping[str, Any]) -> Spec:
    """Fold checked layers into a `Spec`; the later layer wins."""
    folded: dict[str, Any] = {}
    for layer in layers:
        folded.update(layer)
    return Spec(**folded)


def _anchored(value: object, base: Path | None) -> object:
    """Let relative local paths start at `base`."""
    if base is not None and isinstance(value, Path):
        return base / value
    if base is not None and isinstance(value, Mapping):
        return {key: base / each if isinstance(each, Path) else each for key, each in value.items()}
    return value


def brief(value: object) -> str:
    """Show a value in a message: quoted and escaped, and only the beginning of a long one."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}…"  # noqa: PLR2004
