"""What one VM should be: the arguments of `@pytest.mark.virtainer`, checked.

`merge` folds layers of arguments (settings, `virtainer_defaults`, outer and inner markers) into one `Spec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config import architecture
from pytest_virtainers.config.arguments import ARGUMENTS, suggestion
from pytest_virtainers.config.network_spec import DEFAULT, NetworkSpec, NicSpec
from pytest_virtainers.config.parsing import brief
from pytest_virtainers.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from ipaddress import IPv4Address

    from pytest_virtainers.vm.vm import VM


@dataclass(frozen=True)
class Spec:
    """One VM as requested, with a field for each argument; sizes in MiB, times in seconds."""

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
        """Check what depends on several arguments; raises `SpecError`."""
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
        """The hostname of the guest, by which other VMs find it."""
        return self.hostname or self.name

    @property
    def has_fixed_address(self) -> bool:
        """Whether it requires an address that no other VM may have."""
        return self.ip is not None or any(card.ip not in {"auto", "dhcp", "none"} for card in self.nics)

    @property
    def first_network(self) -> NetworkSpec:
        """The network of the first card, with its mode."""
        return self.network.of_first_card(internet=self.internet)

    def without(self, names: Collection[str]) -> Spec:
        """Return it with these arguments reset to their built-in defaults."""
        usual = {name: ARGUMENTS[name].parse(ARGUMENTS[name].default) for name in names if ARGUMENTS[name].default}
        kept = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in names}
        return Spec(**kept, **usual)


def check(arguments: Mapping[str, object], where: str, base: Path | None = None) -> dict[str, Any]:
    """Check arguments and return them in their units.

    Args:
        arguments: the values as a person wrote them; `None` counts as not given.
        where: the place where they were written, for messages (a test and its marker, a fixture).
        base: the folder to which relative paths in `user_data` and `files` refer.

    Raises:
        SpecError: an argument is unknown, or its value is not allowed.
    """
    checked = {}
    for name, value in arguments.items():
        if name not in ARGUMENTS:
            meant = suggestion(name)
            hint = f"did you mean {meant!r}? " if meant else ""
            raise SpecError(f"{where}: unknown argument {name!r}; {hint}allowed are {', '.join(ARGUMENTS)}")
        if value is None:
            continue
        try:
            checked[name] = ARGUMENTS[name].parse(_anchored(value, base))
        except ValueError as error:
            raise SpecError(f"{where}: {name}={brief(value)}: {error}") from error
    return checked


def refuse_sharing(arguments: Mapping[str, object], where: str, instead: str) -> None:
    """Raise `SpecError` for an argument that says how tests share a VM; `instead` is what happens here."""
    if wrong := [name for name in arguments if name in ARGUMENTS and ARGUMENTS[name].sharing]:
        raise SpecError(f"{where}: {wrong[0]} says how tests share a VM; {instead}")


def merge(*layers: Mapping[str, Any]) -> Spec:
    """Return the `Spec` of checked layers; the later layer wins."""
    folded: dict[str, Any] = {}
    for layer in layers:
        folded.update(layer)
    return Spec(**folded)


def _anchored(value: object, base: Path | None) -> object:
    """Return a value whose relative local paths start at `base`."""
    if base is not None and isinstance(value, Path):
        return base / value
    if base is not None and isinstance(value, Mapping):
        return {key: base / each if isinstance(each, Path) else each for key, each in value.items()}
    return value
