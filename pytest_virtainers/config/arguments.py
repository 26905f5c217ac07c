"""The settings of a run as people see them: names, defaults and help texts; `settings` has what they become.

Each pytest run loads this module, also one that uses no VM: it imports nothing of this package.
"""

from __future__ import annotations

from typing import NamedTuple

SIGNATURE = (
    "virtainer(name=None, *, image, ram, cpus, disk, user, user_data, meta_data, packages, run_commands, files, "
    "authorized_keys, prepare, hostname, network, ip, nics, internet, scope, reset, template, identity, accel, "
    "arch, firmware, env, boot_timeout, provision_timeout)"
)
"""The marker, as pytest shows it."""


class Option(NamedTuple):
    """One setting: its name (with `_`), default as a person would write it, and help.

    On the command line a `flag` takes no value, and means `on`.
    """

    name: str
    default: str
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


SHAPE = (
    Option("image", "debian-13", "guest image: a catalogue name or the path of a disk image"),
    Option("ram", "1024", "memory of a VM, such as 1024, 1024M or 2G"),
    Option("cpus", "1", "number of virtual CPUs"),
    Option("disk", "10G", "size of the VM's disk; it takes room only as it fills"),
    Option("accel", "auto", "auto, kvm or tcg (emulation)"),
    Option(
        "arch",
        "auto",
        "the guest's processor: amd64, arm64, or auto for what the catalogue says of the image, else amd64",
    ),
    Option(
        "firmware", "auto", "bios, uefi, or auto for what the catalogue says of the image, else bios (arm64: uefi)"
    ),
    Option("boot_timeout", "300", "seconds until a VM must let us log in"),
    Option(
        "provision_timeout",
        "120",
        "seconds that packages and run_commands may go without progress; ten times that in all, and for prepare "
        "(with KVM: without, each is ten times as long)",
    ),
    Option("internet", "on", "on, or off for a network without a way out"),
    Option("scope", "function", "how long a VM lives: function, class, module or session"),
    Option("template", "on", "on: clone a booted machine of the same shape; off: boot each VM"),
)
"""Settings that are defaults for marker arguments of the same name."""

OPTIONS = (
    *SHAPE,
    Option("engine", "auto", "auto, docker, podman, or the URL of a Docker-compatible API"),
    Option(
        "store",
        "virtainers-store",
        "where guest images live on the engine's side: a volume's name, or an absolute directory",
    ),
    Option(
        "store_limit",
        "20G",
        "room that the store may take: beyond it, the least recently used images and templates go",
    ),
    Option(
        "prefetch",
        "on",
        "on: while a test runs, make the clone for the next one ready; off: make each when it is asked for",
    ),
    Option(
        "max_ram",
        "80%",
        "memory that all VMs of the machine may take together: a size, or a share of the engine's memory",
    ),
    Option(
        "reach", "none", "private networks that VMs may call: private (all), or networks with commas between them"
    ),
    Option("keep", "failed", "whose machines leave evidence behind"),
    Option("artifacts", "virtainer-artifacts", "folder for that evidence, under pytest's rootdir"),
    Option("keep_memory", "off", "on: keep the memory, too; `virtainers resume` goes on", flag=True),
    Option("capture", "never", "for which tests the evidence has what was on the networks, as pcap files"),
    Option("retention", "all", "how often a test may leave evidence: then the oldest goes"),
    Option("hold", "off", "on: a failing test's machines stay up until you press Enter", flag=True),
    Option("echo", "off", "on: show what commands print as it comes (as -s does)", flag=True),
    Option("durations", "off", "on: show where the seconds of the VMs' launches went", flag=True),
    Option("missing", "error", "what tests do without an engine: error or skip"),
)
