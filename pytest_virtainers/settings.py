"""Settings of a run: what they are called, and which source wins.

Every setting is `--virtainer-X`, `VIRTAINER_X` in the environment and `virtainer_X` in the ini file; the first
of these that speaks wins, then the built-in default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_virtainers import reach, values
from pytest_virtainers.errors import SpecError
from pytest_virtainers.spec import PARSERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Setting:
    """One setting: its name (with `_`), default as a person would write it, parser and help.

    On the command line a `flag` takes no value, and means `on`.
    """

    name: str
    default: str
    parse: Callable[[Any], Any]
    help: str
    flag: bool = False

    @property
    def option(self) -> str:
        """The name on the command line."""
        return f"--virtainer-{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return f"VIRTAINER_{self.name.upper()}"

    @property
    def ini(self) -> str:
        """The name in the ini file."""
        return f"virtainer_{self.name}"


_SHAPE = (
    ("image", "debian-13", "guest image: a catalogue name or the path of a disk image"),
    ("ram", "1024M", "memory of a VM, such as 1024, 1024M or 2G"),
    ("cpus", "1", "number of virtual CPUs"),
    ("disk", "10G", "size of the VM's disk; it takes room only as it fills"),
    ("accel", "auto", "auto, kvm or tcg (emulation)"),
    (
        "arch",
        "auto",
        "the guest's processor: amd64, arm64, or auto for what the catalogue says of the image, else amd64",
    ),
    ("firmware", "auto", "bios, uefi, or auto for what the catalogue says of the image, else bios (arm64: uefi)"),
    ("boot_timeout", "300", "seconds until a VM must let us log in"),
    (
        "provision_timeout",
        "120",
        "seconds that packages and run_commands may go without progress; ten times that in all, and for prepare "
        "(with KVM: without, each is ten times as long)",
    ),
    ("internet", "on", "on, or off for a network without a way out"),
    ("scope", "function", "how long a VM lives: function, class, module or session"),
    ("template", "on", "on: clone a booted machine of the same shape; off: boot each VM"),
)
SHAPE_NAMES = tuple(name for name, _, _ in _SHAPE)
"""Settings that are defaults for marker arguments of the same name."""

SETTINGS = (
    *(Setting(name, default, PARSERS[name], text) for name, default, text in _SHAPE),
    Setting("engine", "auto", values.text, "auto, docker, podman, or the URL of a Docker-compatible API"),
    Setting(
        "store",
        "virtainers-store",
        values.text,
        "where guest images live on the engine's side: a volume's name, or an absolute directory",
    ),
    Setting(
        "store_limit",
        "20G",
        values.size_mib(least=0),
        "room that the store may take: beyond it, the least recently used images and templates go",
    ),
    Setting(
        "prefetch",
        "on",
        values.switch,
        "on: while a test runs, make the clone for the next one ready; off: make each when it is asked for",
    ),
    Setting(
        "max_ram",
        "80%",
        values.size_or_share,
        "memory that all VMs of the machine may take together: a size, or a share of the engine's memory",
    ),
    Setting(
        "reach",
        "none",
        reach.networks,
        "private networks that VMs may call: private (all), or networks with commas between them",
    ),
    Setting("keep", "failed", values.choice("never", "failed", "always"), "whose machines leave evidence behind"),
    Setting("artifacts", "virtainer-artifacts", values.text, "folder for that evidence, under pytest's rootdir"),
    Setting("keep_memory", "off", values.switch, "on: keep the memory, too; `virtainers resume` goes on", flag=True),
    Setting(
        "capture",
        "never",
        values.choice("never", "failed", "always"),
        "for which tests the evidence has what was on the networks, as pcap files",
    ),
    Setting("retention", "all", values.count_or_all, "how often a test may leave evidence: then the oldest goes"),
    Setting("hold", "off", values.switch, "on: a failing test's machines stay up until you press Enter", flag=True),
    Setting("echo", "off", values.switch, "on: show what commands print as it comes (as -s does)", flag=True),
    Setting("durations", "off", values.switch, "on: show where the seconds of the VMs' launches went", flag=True),
    Setting("missing", "error", values.choice("error", "skip"), "what tests do without an engine: error or skip"),
)


@dataclass(frozen=True)
class Settings:
    """The settings of this run; `shape` has the defaults of a `Spec`, in its units; `store_limit` is in MiB.

    `max_ram` gives the memory for all VMs, from that of the engine's host, both in MiB.
    """

    shape: Mapping[str, Any]
    engine: str
    store: str
    store_limit: int
    prefetch: bool
    max_ram: Callable[[int], int]
    reach: tuple[reach.Net, ...]
    keep: str
    artifacts: str
    keep_memory: bool
    capture: str
    retention: int | None
    hold: bool
    echo: bool
    durations: bool
    missing: str


@dataclass(frozen=True)
class Source:
    """A place where settings are written: how one is called there, and its value (None: not given)."""

    called: Callable[[Setting], str]
    lookup: Callable[[Setting], str | None]


def resolve(sources: Sequence[Source]) -> Settings:
    """Take each setting from the first of `sources` that gives it, else from the built-in defaults.

    Raises:
        SpecError: a value is not allowed; the message names the source.
    """
    found: dict[str, Any] = {}
    for setting in SETTINGS:
        name, value = setting.name, setting.default
        for source in sources:
            given = source.lookup(setting)
            if given is not None:
                name, value = source.called(setting), given
                break
        try:
            found[setting.name] = setting.parse(value)
        except ValueError as error:
            raise SpecError(f"{name}={value}: {error}") from error
    shape = {name: found.pop(name) for name in SHAPE_NAMES}
    return Settings(shape=shape, **found)


def environment(environ: Mapping[str, str]) -> Source:
    """Make the source that reads `VIRTAINER_X`; an empty variable gives nothing."""
    return Source(lambda setting: setting.variable, lambda setting: environ.get(setting.variable) or None)
