"""Every argument of a VM and every setting of a run, each declared once.

From here come the marker's keywords and those of `launch` and `vm_factory`, the keys of `virtainers.toml`, pytest's
options and ini keys, the options of `virtainers run`, and the tables in docs/reference.md.

Each pytest run loads this module, also one that uses no VM. So it imports nothing of this package: parsers are named,
and imported when the first value is parsed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Literal


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        what: the allowed values, in a few words.
        parser: the function of this package that checks a value and returns it in its unit, as `MODULE.FUNCTION`.
        metavar: the placeholder on the command line; a `FILE` is read.
        given: arguments with which `parser` is called to make the parser; empty: it is the parser.
        reader: the function that converts text from the command line to a value; empty: the text is the value.
    """

    what: str
    parser: str
    metavar: str
    given: tuple[Any, ...] = ()
    reader: str = ""


class Argument(NamedTuple):
    """An argument of a VM, or a setting of a run.

    Attributes:
        name: as a Python keyword; options have `-` instead of `_`.
        kind: its values.
        help: what it is, as the beginning of a sentence.
        default: as a user would write it; empty: there is none.
        setting: whether it is also a setting, which is the default for all VMs.
        template: its effect on templates. `booted`: VMs that differ in it have different templates; `layered`:
            the same, and the template is made from the one without it; `making`: it is about making a template;
            empty: none.
        sharing: whether it says how tests share a VM; only the marker accepts it.
        command_line: whether `virtainers run` has it.
        each: the option of `virtainers run` for one item of a list or mapping; it can be repeated.
        flag: whether pytest's option takes no value, and means `on`.
        synonyms: other names that users may try, for suggestions.
    """

    name: str
    kind: Kind
    help: str
    default: str = ""
    setting: bool = False
    template: Literal["", "booted", "layered", "making"] = ""
    sharing: bool = False
    command_line: bool = True
    each: str = ""
    flag: bool = False
    synonyms: tuple[str, ...] = ()

    @property
    def parse(self) -> Callable[[Any], Any]:
        """The function that checks a value and returns it in its unit; it raises `ValueError`."""
        found: Callable[..., Any] = _find(self.kind.parser)
        return found(*self.kind.given) if self.kind.given else found

    @property
    def read(self) -> Callable[[Any], Any] | None:
        """The function that converts text from the command line to a value; it raises `ValueError`."""
        return _find(self.kind.reader) if self.kind.reader else None

    @property
    def option(self) -> str:
        """The name as an option of pytest."""
        return f"--virtainer-{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return f"VIRTAINER_{self.name.upper()}"

    @property
    def ini(self) -> str:
        """The name in pytest's ini file."""
        return f"virtainer_{self.name}"

    @property
    def command_option(self) -> str:
        """The name as an option of `virtainers run`."""
        return f"--{self.each or self.name.replace('_', '-')}"

    @property
    def shapes_template(self) -> bool:
        """Whether VMs that differ in it have different templates."""
        return self.template in {"booted", "layered"}


def meant_by(word: str) -> str | None:
    """Return the argument that has this name or synonym."""
    return next(
        (each.name for each in ARGUMENTS.values() if word in (*each.synonyms, each.each.replace("-", "_"))), None
    )


def suggestion(word: str) -> str | None:
    """Return the argument that an unknown name probably means: one with that synonym, or a similar name."""
    import difflib

    return meant_by(word) or next(iter(difflib.get_close_matches(word, ARGUMENTS, n=1)), None)


def _find(reference: str) -> Any:
    module, _, name = reference.partition(".")
    return getattr(importlib.import_module(f"pytest_virtainers.config.{module}"), name)


def _one_of(*words: str) -> Kind:
    return Kind(", ".join(words), "parsing.choice", "|".join(words), words)


def _size(least: int) -> Kind:
    return Kind("MiB, or a size such as 512M or 2G", "parsing.size_mib", "SIZE", (least,))


_ENV = Kind("{name: text}", "parsing.env", "NAME=VALUE", reader="parsing.pairs")
_FILES = Kind("{guest path: text, bytes or Path}", "parsing.files", "FILE:PATH", reader="parsing.guest_files")
_HOST_NAME = Kind("host name without a domain", "parsing.host_name", "NAME")
_IMAGE = Kind("name, path, URL or docker-image://NAME", "parsing.image", "IMAGE")
_IP = Kind("address, or its number in the subnet, from 2", "network_spec.address", "ADDRESS")
_KEYS = Kind("list of lines or Paths", "parsing.authorized_keys", "FILE")
_MAPPING = Kind("mapping, YAML text or Path", "parsing.mapping", "FILE")
_NETWORK = Kind("name or mapping", "network_spec.network", "NAME|KEY=VALUE,...", reader="network_spec.read_network")
_NICS = Kind("list of names or mappings", "network_spec.nics", "NAME|KEY=VALUE,...", reader="network_spec.read_nics")
_PREPARE = Kind("function that takes the VM", "parsing.prepare", "")
_SECONDS = Kind("seconds", "parsing.seconds", "SECONDS")
_SWITCH = Kind("on, off", "parsing.switch", "on|off")
_WHEN = _one_of("never", "failed", "always")

ARGUMENTS: Mapping[str, Argument] = {
    each.name: each
    for each in (
        Argument("name", _HOST_NAME, "name of the VM, its container and its DNS entry", "vm"),
        Argument(
            "image",
            _IMAGE,
            "guest image",
            "debian-13",
            setting=True,
            template="booted",
            synonyms=("os", "distro", "distribution", "guest", "box", "release"),
        ),
        Argument(
            "ram", _size(64), "memory of the VM", "1024", setting=True, template="booted", synonyms=("memory", "mem")
        ),
        Argument(
            "cpus",
            Kind("number", "parsing.whole_number", "N"),
            "virtual CPUs",
            "1",
            setting=True,
            template="booted",
            synonyms=("vcpus", "cores", "smp", "processors"),
        ),
        Argument(
            "disk",
            _size(1024),
            "size of the VM's disk; it uses space only as it fills",
            "10G",
            setting=True,
            template="booted",
            synonyms=("disk_size", "size", "storage"),
        ),
        Argument(
            "user",
            Kind("login name", "parsing.user_name", "NAME"),
            "login user, with passwordless sudo; by default the image's own",
            template="booted",
            synonyms=("username", "login"),
        ),
        Argument(
            "user_data",
            _MAPPING,
            "cloud-config for cloud-init",
            template="booted",
            synonyms=("cloud_config", "cloud_init", "userdata"),
        ),
        Argument(
            "meta_data",
            _MAPPING,
            "meta-data for cloud-init; takes precedence over the plugin's",
            template="booted",
            synonyms=("metadata",),
        ),
        Argument(
            "packages",
            Kind("list of names", "parsing.packages", "NAME"),
            "packages to install at the first boot",
            template="layered",
            each="package",
            synonyms=("install",),
        ),
        Argument(
            "run_commands",
            Kind("list of commands, each a text for the shell or a list of words", "parsing.commands", "TEXT"),
            "commands at the end of the first boot, as root",
            template="layered",
            each="run-command",
            synonyms=("runcmd", "commands", "command", "run"),
        ),
        Argument(
            "files",
            _FILES,
            "files in the guest, owned by root, mode 0644",
            template="layered",
            each="file",
            synonyms=("write_files", "copy", "volume", "mount"),
        ),
        Argument(
            "authorized_keys",
            _KEYS,
            "further public keys that may log in",
            template="layered",
            each="key",
            synonyms=("ssh_keys", "keys", "ssh_key", "public_key", "ssh_authorized_keys"),
        ),
        Argument(
            "prepare",
            _PREPARE,
            "what sets the VM up once, before its template is saved",
            template="layered",
            command_line=False,
            synonyms=("setup", "set_up", "provision"),
        ),
        Argument("hostname", _HOST_NAME, "hostname of the guest; by default the VM's name"),
        Argument("network", _NETWORK, "network of the first card", "default", synonyms=("net",)),
        Argument(
            "ip", _IP, "address on that network; by default the engine's choice", synonyms=("address", "ip_address")
        ),
        Argument(
            "nics",
            _NICS,
            "networks on which the VM has further cards",
            each="nic",
            synonyms=("networks", "interfaces", "cards"),
        ),
        Argument(
            "internet",
            _SWITCH,
            "whether the VM's network has a way out",
            "on",
            setting=True,
            template="booted",
            synonyms=("isolated", "offline", "online"),
        ),
        Argument(
            "scope",
            _one_of("function", "class", "module", "session"),
            "how long a VM lives; tests with equal VMs in one scope share it",
            "function",
            setting=True,
            sharing=True,
        ),
        Argument(
            "reset",
            _one_of("none", "snapshot"),
            "state to which a shared VM returns before each further test; snapshot: its start, memory and disk",
            "none",
            sharing=True,
        ),
        Argument(
            "template",
            _SWITCH,
            "whether to clone a booted VM of the same shape; off: boot each VM",
            "on",
            setting=True,
            template="making",
            synonyms=("clone",),
        ),
        Argument(
            "identity",
            _one_of("template", "fresh"),
            "machine-id and SSH host key of a clone; fresh: new ones",
            "template",
            synonyms=("machine_id",),
        ),
        Argument(
            "accel",
            _one_of("auto", "kvm", "tcg"),
            "accelerator of QEMU; tcg is emulation",
            "auto",
            setting=True,
            template="booted",
            synonyms=("accelerator", "kvm", "acceleration"),
        ),
        Argument(
            "arch",
            _one_of("auto", "amd64", "arm64"),
            "architecture of the guest; auto: as the catalogue says, else amd64",
            "auto",
            setting=True,
            template="booted",
            synonyms=("architecture", "platform", "machine"),
        ),
        Argument(
            "firmware",
            _one_of("auto", "bios", "uefi"),
            "firmware; auto: as the catalogue says, else bios, or uefi for arm64",
            "auto",
            setting=True,
            template="booted",
            synonyms=("bios", "uefi", "efi"),
        ),
        Argument(
            "env",
            _ENV,
            "variables of the runtime image: CIDR, DISK_CACHE, OS_VARIANT, SHUTDOWN_TIMEOUT",
            template="booted",
            each="env",
            synonyms=("environment", "variables"),
        ),
        Argument(
            "boot_timeout",
            _SECONDS,
            "time until the VM must accept logins",
            "300",
            setting=True,
            template="making",
            synonyms=("timeout",),
        ),
        Argument(
            "provision_timeout",
            _SECONDS,
            "time that packages and run_commands may go without progress; ten times that in all, and for prepare; "
            "each is ten times as long without KVM",
            "120",
            setting=True,
            template="making",
        ),
    )
}
"""The arguments of a VM, by name, in the order in which people see them."""

DEFAULTS = tuple(each for each in ARGUMENTS.values() if each.setting)
"""Arguments that are settings, too: the setting is the default for all VMs."""

_TEXT = Kind("text", "parsing.text", "TEXT")

SETTINGS: Mapping[str, Argument] = {
    each.name: each
    for each in (
        *DEFAULTS,
        Argument(
            "engine",
            _TEXT._replace(what="auto, docker, podman, or the URL of a Docker-compatible API"),
            "container engine",
            "auto",
        ),
        Argument(
            "store",
            _TEXT._replace(what="name of a volume, or an absolute directory"),
            "where images and templates live on the engine's side",
            "virtainers-store",
        ),
        Argument(
            "store_limit",
            _size(0),
            "space that the store may use; beyond it, the least recently used images and templates are removed",
            "20G",
        ),
        Argument(
            "prefetch",
            _SWITCH,
            "whether to make the clone for the next test ready while a test runs",
            "on",
        ),
        Argument(
            "max_ram",
            Kind("size, or a share such as 80%", "parsing.size_or_share", "SIZE"),
            "memory that all VMs on the engine's host may use together",
            "80%",
        ),
        Argument(
            "reach",
            Kind("none, private, or networks with commas between them", "reach.networks", "none|private|NETWORKS"),
            "private networks that VMs may connect to; private: all of them",
            "none",
        ),
        Argument("keep", _WHEN, "tests whose VMs leave evidence", "failed"),
        Argument(
            "artifacts",
            _TEXT._replace(what="folder, relative to pytest's rootdir"),
            "where evidence is written",
            "virtainer-artifacts",
        ),
        Argument(
            "keep_memory",
            _SWITCH,
            "whether evidence includes memory, so that virtainers resume continues it",
            "off",
            flag=True,
        ),
        Argument(
            "capture", _WHEN, "tests whose evidence includes the traffic of their networks, as pcap files", "never"
        ),
        Argument(
            "retention",
            Kind("number, or all", "parsing.count_or_all", "N"),
            "evidence folders kept per test; the oldest is removed",
            "all",
        ),
        Argument("hold", _SWITCH, "whether a failing test's VMs stay up until you press Enter", "off", flag=True),
        Argument("echo", _SWITCH, "whether to show the output of commands at once, as -s does", "off", flag=True),
        Argument("durations", _SWITCH, "whether to show how long each phase of a launch took", "off", flag=True),
        Argument("missing", _one_of("error", "skip"), "what tests do without an engine", "error"),
    )
}
"""The settings of a run, by name."""

SIGNATURE = f"virtainer(name=None, *, {', '.join([*ARGUMENTS][1:])})"
"""The marker, as pytest shows it."""
