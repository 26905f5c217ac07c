"""The machine that QEMU emulates: settings and open files in, a command line out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from virtainer.protocol import CLONE_DEVICE, CLONE_PORT, GUEST_MAC, SSH_DEVICE, SSH_PORT
from virtainer.settings import CACHE_MODES

if TYPE_CHECKING:
    from virtainer.settings import Settings


class Board(NamedTuple):
    """The differences between architectures."""

    qemu: str
    machine: str
    emulated: str  # the processor, unless KVM uses the host's
    devices: tuple[str, ...] = ()


# Versioned, so that a saved VM and a resumed disk find the same machine. Without controllers that have no devices:
# for each the guest would load a driver and wait for a probe. Without graphics the firmware also uses the serial
# line, which then shows "No bootable device". Only screenshots show the screen.
# Linux uses the HPET only while it boots, but QEMU would keep it ticking 250 times a second as long as the VM runs.
# A fifth level of page tables, which Linux uses if there is one, makes each miss of the emulated TLB more expensive.
_OLD = Board(
    "qemu-system-x86_64",
    "pc-i440fx-10.0,graphics=off,hpet=off",
    "max,la57=off",
    ("VGA", "vmgenid,guid=auto", "pvpanic"),
)
BOARDS = {
    "amd64": _OLD._replace(machine="pc-q35-10.0,sata=off,smbus=off,graphics=off,hpet=off"),
    # Cloud kernels draw only through the firmware's screen. Pointer authentication by Arm's own algorithm
    # takes half of an emulated processor's time (docs/system/arm/cpu-features.rst of QEMU).
    "arm64": Board(
        "qemu-system-aarch64",
        "virt-10.0,gic-version=max",
        "max,pauth-impdef=on",
        ("ramfb", "virtio-keyboard-pci", "pvpanic-pci"),
    ),
}

# Its variables are kept in the machine's memory: in templates and snapshots, not next to the disk.
_ARM64_FIRMWARE = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"

# QEMU opens these as the files that the supervisor opened for it (`-add-fd`).
_BASE, _OVERLAY, _SEED, _KVM = "/dev/fdset/1", "/dev/fdset/2", "/dev/fdset/3", "/dev/fdset/4"
STATE, _LAYER, _CODE, _VARIABLES = "/dev/fdset/5", "/dev/fdset/6", "/dev/fdset/7", "/dev/fdset/8"

PLUGS = 8
"""The number of devices that may be added while the machine runs (`virtainer.devices`)."""
BUILT_IN = frozenset({"disk0", "nic0", SSH_DEVICE, *(f"plug{each}" for each in range(PLUGS))})
"""The devices with names that every machine may have from its start."""
DEVICES_ADDED = Path("/run/virtainer/devices-added")
"""Exists once a device was added: a QEMU that is started in place of this one would not have it."""


class Handles(NamedTuple):
    """Descriptors that QEMU inherits. It runs as a user that could not open them itself."""

    base: int
    overlay: int
    seed: int
    tap: int
    console: int  # a connected socket
    monitor: int  # a connected socket: the supervisor's own QMP
    qmp: int  # a listening socket: QMP for all others
    kvm: int | None
    # Of a VM that becomes a template, or starts from one:
    ram: int | None = None
    state: int | None = None
    layer: int | None = None  # the template's disk
    origin: int | None = None  # the state of the template from which another template is made
    port: int | None = None  # a connected socket: the helper's
    line: int | None = None  # a connected socket
    # Of UEFI:
    code: int | None = None
    variables: int | None = None

    def all(self) -> tuple[int, ...]:
        """All descriptors that are not `None`."""
        return tuple(fd for fd in self if fd is not None)


def board(settings: Settings) -> Board:
    """Choose the board: systems without virtio drivers are older than AHCI and PCI Express, too."""
    return BOARDS[settings.arch] if settings.virtio else _OLD


def argv(settings: Settings, base_format: str, handles: Handles) -> list[str]:
    """Return QEMU's command line."""
    incoming = handles.origin is not None or (handles.state is not None and not settings.template_save)
    return [
        board(settings).qemu,
        *("-name", f"{settings.name},process={settings.name}"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        # A VNC server that does not listen: viewers are passed to it (see viewer.py). They need a password, and do
        # not disconnect each other, even if they do not ask for a shared session.
        *("-vnc", "none,password=on,share=ignore"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *_board(settings, handles),
        *_processor(settings, handles),
        *("-m", str(settings.ram)),
        *_memory(settings, handles),
        *_disks(settings, base_format, handles),
        *_devices(settings, handles),
        *_channels(handles),
        *(("-incoming", "defer") if incoming else ()),
        # A guest that panics stays as it is: its console, screen and memory are the evidence.
        *("-action", f"panic=none{',shutdown=pause' if settings.linger else ''}"),
    ]


def _board(settings: Settings, handles: Handles) -> list[str]:
    properties = f"{board(settings).machine},memory-backend=ram"
    if handles.code is None or handles.variables is None:
        return [*(("-bios", _ARM64_FIRMWARE) if settings.arch == "arm64" else ()), "-machine", properties]
    flash = (
        {"driver": "raw", "node-name": "code", "read-only": True, "file": _file(_CODE, read_only=True)},
        {"driver": "raw", "node-name": "variables", "file": _file(_VARIABLES)},
    )
    return [
        *_add_fd(handles.code, _CODE),
        *_add_fd(handles.variables, _VARIABLES),
        *(word for node in flash for word in ("-blockdev", json.dumps(node))),
        *("-machine", f"{properties},pflash0=code,pflash1=variables"),
    ]


def _processor(settings: Settings, handles: Handles) -> list[str]:
    if handles.kvm is None:
        # QEMU's cache of translated code would grow to 1 GiB, in addition to the RAM: a boot of Debian fills 230 MiB.
        accel = ["-accel", "tcg,thread=multi,tb-size=320", "-cpu", board(settings).emulated]
    else:
        accel = [*_add_fd(handles.kvm, _KVM), "-accel", f"kvm,device={_KVM}", "-cpu", "host"]
    return [*accel, "-smp", str(settings.cpus)]


def _memory(settings: Settings, handles: Handles) -> list[str]:
    """Return QEMU's options for the RAM.

    A template's RAM is its file; a clone's is a private copy-on-write mapping of that. It always has the same name,
    by which a saved state finds it again.
    """
    # Of the descriptors in one set, QEMU uses the readable one for reading, and the writable one for writing.
    state = [word for fd in (handles.state, handles.origin) if fd is not None for word in _add_fd(fd, STATE)]
    if handles.ram is None:
        return ["-object", f"memory-backend-ram,id=ram,size={settings.ram}M", *state]
    sharing = "share=on" if handles.layer is None else "share=off,readonly=on,rom=off"
    file = f"/proc/self/fd/{handles.ram}"  # it does not accept /dev/fdset
    return ["-object", f"memory-backend-file,id=ram,size={settings.ram}M,mem-path={file},{sharing}", *state]


def _disks(settings: Settings, base_format: str, handles: Handles) -> list[str]:
    mode = CACHE_MODES[settings.cache]
    cache: dict[str, Any] = {"direct": mode.direct, "no-flush": mode.no_flush}
    base = {"driver": base_format, "node-name": "base", "read-only": True, "file": _file(_BASE, read_only=True)}
    if base_format == "qcow2":
        base["backing"] = None  # whatever its header says
    overlay = {
        "driver": "qcow2",
        "node-name": "disk",
        "discard": "unmap",
        "file": _file(_OVERLAY, discard="unmap", cache=cache),
        "cache": cache,
        "backing": "base" if handles.layer is None else "layer",
    }
    layer = {
        "driver": "qcow2",
        "node-name": "layer",
        "read-only": True,
        "file": _file(_LAYER, read_only=True),
        "backing": "base",
    }
    seed = {"driver": "raw", "node-name": "seed", "read-only": True, "file": _file(_SEED, read_only=True)}
    write_cache = f"write-cache={'on' if mode.write_cache else 'off'}"
    if settings.virtio:
        # The seed is not a CD: cloud kernels often lack the drivers for one. cloud-init finds it by its label.
        devices = [f"virtio-blk-pci,id=disk0,drive=disk,bootindex=1,{write_cache}", "virtio-blk-pci,drive=seed"]
    else:
        devices = [f"ide-hd,id=disk0,bus=ide.0,drive=disk,bootindex=1,{write_cache}", "ide-cd,bus=ide.1,drive=seed"]
    nodes = [base, overlay, seed] if handles.layer is None else [base, layer, overlay, seed]
    return [
        *_add_fd(handles.base, _BASE),
        *_add_fd(handles.overlay, _OVERLAY),
        *_add_fd(handles.seed, _SEED),
        *(_add_fd(handles.layer, _LAYER) if handles.layer is not None else ()),
        *(word for node in nodes for word in ("-blockdev", json.dumps(node))),
        *(word for device in devices for word in ("-device", device)),
    ]


def _devices(settings: Settings, handles: Handles) -> list[str]:
    card = "virtio-net-pci" if settings.virtio else "e1000"
    # A clone has the same neighbours as its template: announcements would be useless, and wake many services.
    announce = ",guest_announce=off" if settings.virtio else ""
    devices = [
        f"{card},id=nic0,netdev=net0,mac={GUEST_MAC},romfile={announce}",
        *board(settings).devices,
    ]
    if settings.virtio:
        # PCI Express takes new devices on root ports only (docs/pcie.txt of QEMU); all of them share one slot.
        ports = [f"pcie-root-port,id=plug{each},chassis={each + 1},addr=10.{each}" for each in range(PLUGS)]
        # A tablet has absolute positions: a mouse's pointer would drift, and cloud kernels have no USB.
        devices += ["virtio-tablet-pci", "virtio-rng-pci", f"{ports[0]},multifunction=on", *ports[1:]]
    port: tuple[str, ...] = ()
    if handles.port is not None:
        port = ("-chardev", f"socket,id={CLONE_DEVICE},fd={handles.port}")
        devices += ["virtio-serial-pci", f"virtserialport,chardev={CLONE_DEVICE},name={CLONE_PORT}"]
    if handles.line is not None:
        port += ("-chardev", f"socket,id=line,fd={handles.line}")
        devices.append(f"virtserialport,id={SSH_DEVICE},chardev=line,name={SSH_PORT}")
    return [
        *("-netdev", f"tap,id=net0,fd={handles.tap}"),
        *port,
        *(word for device in devices for word in ("-device", device)),
    ]


def _channels(handles: Handles) -> list[str]:
    return [
        *("-chardev", f"socket,id=console,fd={handles.console}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=monitor,fd={handles.monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"socket,id=qmp,fd={handles.qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
    ]


def _file(name: str, *, read_only: bool = False, **more: object) -> dict[str, Any]:
    return {"driver": "file", "filename": name, "read-only": read_only, **more}


def _add_fd(fd: int, name: str) -> list[str]:
    return ["-add-fd", f"fd={fd},set={name.rpartition('/')[2]}"]
