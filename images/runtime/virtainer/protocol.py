"""Variables, events, exit codes, ports, names and paths that the supervisor and the plugin share.

The plugin reads this file, too. It imports as little as possible, because each VM waits for the supervisor to start.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Variable:
    """The container's environment variables, which `settings.py` reads; docs/runtime-image.md describes them."""

    ACCEL = "ACCEL"
    ARCH = "ARCH"
    CIDR = "CIDR"
    CLOSED_GATEWAY = "CLOSED_GATEWAY"
    CLOSED_HOSTS = "CLOSED_HOSTS"
    CLOSED_NETWORKS = "CLOSED_NETWORKS"
    CLOUD_INIT_DISK = "CLOUD_INIT_DISK"
    CPU = "CPU"
    DISK_CACHE = "DISK_CACHE"
    DISK_SIZE = "DISK_SIZE"
    DNS = "DNS"
    EVENTS = "EVENTS"
    FIRMWARE = "FIRMWARE"
    IMAGE_DIR = "IMAGE_DIR"
    IMAGE_URL = "IMAGE_URL"
    LEASE = "LEASE"
    LINGER = "LINGER"
    OS_VARIANT = "OS_VARIANT"
    RAM = "RAM"
    RESUME = "RESUME"
    SHUTDOWN_TIMEOUT = "SHUTDOWN_TIMEOUT"
    TEMPLATE = "TEMPLATE"
    TEMPLATE_SAVE = "TEMPLATE_SAVE"
    VM_NAME = "VM_NAME"


# Events

TEXT, JSON = "text", "json"
"""The values of EVENTS: how the supervisor writes its events."""
LONGEST_EVENT = 4000
"""The longest line of an event, in bytes without its end. A pipe takes PIPE_BUF (4096) at once: a longer line could
be torn by that of another thread."""
SENTENCES = {
    "started": "starting {name}: {ram_mib} MiB, {cpus} CPU, {accel}, {disk} ({format}), "
    "prepared in {prepared_s:.2f} s",
    "restored": "clone restored: prepared in {prepared_s:.3f} s, QEMU up in {qemu_s:.3f} s, state in {state_s:.3f} s",
    "helper-ready": "helper: ready",
    "helper-done": "helper: done, hostname {hostname}, clock {clock_ms:+.1f} ms",
    "helper-unexpected": "helper: unexpected: {line}",
    "guest-off": "guest switched itself off",
    "guest-on": "guest runs again",
    "guest-panicked": "guest panicked",
    "guest-rebooted": "guest rebooted",
    "disk-failed": "guest paused, its disk failed: {cause}. Fix that, then resume the guest: "
    """docker exec CONTAINER qmp '{{"execute": "cont"}}'""",
    "boot-crashed": "QEMU crashed while the guest booted, starting it again, once: {detail}",
    "dns-ended": "dnsmasq ended with exit code {code} (see {log}): the guest has no DHCP and no DNS",
    "stopping": "{signal}: asking the guest to shut down within {grace_s:g} s",
    "qemu": "qemu: {line}",
    "suppressed": "{what}: too many lines, further ones are not shown",
    "note": "{text}",
    "over": "over: {detail}",
    "end": "end: {reason}: {detail}",
}
"""For each event, the sentence for people, made of the event's fields. `over` and `end` also have the field
`crashed`: whether QEMU itself failed. `end` is the last event, with a word of `Reason`."""


def sentence(event: Mapping[str, Any]) -> str:
    """Return an event as one line for people, with control characters escaped.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: this is not an event, or not with the fields of one.
    """
    return f"virtainer: {escaped(SENTENCES[event['event']].format_map(event))}"


def escaped(text: str) -> str:
    """Return a text with characters that are not printable written as Python does."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class Reason(Enum):
    """Why a virtainer ended: the word in its last event, and the container's exit code."""

    POWERED_OFF = ("powered-off", 0)  # the guest switched itself off
    STOPPED = ("stopped", 0)  # SIGTERM or SIGINT, and the guest shut down in time
    QUIT = ("quit", 0)  # a QMP command
    KILLED = ("killed", 2)  # the guest outlived the grace time, or a second SIGTERM came
    LEASE = ("lease-gone", 3)  # the holder of the container's stdin ended
    SETTING = ("bad-setting", 10)
    IMAGE = ("bad-image", 11)
    SEED = ("bad-seed", 12)
    STORAGE = ("storage", 13)  # IMAGE_DIR is full, read-only, or holds another guest's overlay
    PRIVILEGE = ("privilege", 14)  # a capability, device or sysctl is missing
    NETWORK = ("network", 15)
    QEMU = ("qemu-failed", 16)
    TEMPLATE = ("bad-template", 17)  # it does not restore here
    INTERNAL = ("internal-error", 70)

    @property
    def word(self) -> str:
        """The word in the last event."""
        return self.value[0]

    @property
    def code(self) -> int:
        """The container's exit code."""
        return self.value[1]


NO_HELPER = 3
"""The exit code of the command `snapshot` when no helper waits in the guest."""

# The machine

FIRMWARE = {"amd64": ("bios", "uefi"), "arm64": ("uefi",)}
"""The firmware that each architecture boots from, the default first."""
GUEST_MAC = "52:54:00:76:69:02"
"""The MAC address of the guest's first network card."""
CLONE_PORT, CLONE_DEVICE = "org.virtainers.clone", "port"
"""The virtio-serial port of the helper in the guest, as the guest and as QEMU call it."""
SSH_PORT, SSH_DEVICE = "org.virtainers.line", "line"
"""The virtio-serial port of the SSH session that outlives a restore, as the guest and as QEMU call it."""
SSH_TCP_PORT = 50022
"""The TCP port of a clone's container that leads to `SSH_PORT`, for the engine's host only."""
HIDDEN_ETHERTYPES = {0x0800: 0x88B5, 0x86DD: 0x88B6}
"""EtherTypes for local experiments (IEEE 802) that replace those of IPv4 and IPv6 to hide frames from firewalls."""
SHUTDOWN_SECONDS = 60
"""The default of SHUTDOWN_TIMEOUT."""

# Files

IMAGE_DIR = "/mounted"
"""The default of IMAGE_DIR, the folder with the VM's overlay."""
OVERLAY = "local_image.qcow2"
"""The VM's disk in IMAGE_DIR."""
SEEDS, SEED_ISO = "/tmp", "cloud_init.iso"  # noqa: S108  (the contract's place, as `docker run -v` users know it)
"""The folder for seeds, and a ready one in it."""
EVIDENCE, EVIDENCE_DISK, EVIDENCE_SEED, EVIDENCE_STATE = "evidence", "overlay.qcow2", "seed.iso", "state"
"""The folder in IMAGE_DIR that the command `evidence` fills, and the files in it."""
RESUME_FACTS = "facts.json"
"""The file in the folder RESUME with facts about the machine; `EVIDENCE_STATE` is the other one."""
QCOW2, VMDK, VHDX = b"QFI\xfb", b"KDMV", b"vhdxfile"
"""The first bytes of the formats that a guest's disk may have, if it is not raw."""
BOOT_MARK = b"\x55\xaa"
"""The last bytes of the first sector of a raw disk that boots, with GPT as well."""
