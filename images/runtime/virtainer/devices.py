"""The command `device`: disks and network cards that are added and removed while the machine runs.

    docker exec CONTAINER device add-disk NAME MIB
    docker exec CONTAINER device add-nic NAME MAC
    docker exec CONTAINER device join NAME MAC [open|hidden] [any]
    docker exec CONTAINER device remove NAME [--reset]

QEMU runs as a user who can open no file here: the file of a new disk, or a tap, is opened for it and passed on.

A card that is added is on a separate network that QEMU emulates, with DHCP and no other machine. A card that joins
takes over the container's interface with its MAC; one line of JSON is printed, with the properties that the interface
had. With `open`, nothing there is closed to it: where the engine's host is not on the network, its first address
belongs to another machine. It sends only from the addresses that are printed, unless `hidden`; with `any`, from all
except the host's.

https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

from virtainer import bridged_nic, interfaces, isolation, qmp
from virtainer.exit_reasons import End
from virtainer.machine import BUILT_IN, DEVICES_ADDED, PLUGS
from virtainer.network import MAX_MTU, make_tap
from virtainer.protocol import IMAGE_DIR, Variable
from virtainer.settings import Settings
from virtainer.tools import ToolError

_NAME = r"[a-z][a-z0-9-]{0,19}"  # also the disk's serial number, which has room for 20 characters
_USAGE = (
    "usage: device add-disk NAME MIB | add-nic NAME MAC | join NAME MAC [open|hidden] [any] | remove NAME [--reset]"
)
_FILES = Path(os.environ.get(Variable.IMAGE_DIR) or IMAGE_DIR)
_UNPLUG_SECONDS = 30.0
_POLL_SECONDS = 0.1


def add_disk(connection: socket.socket, name: str, mib: int) -> None:
    """Create an empty disk (raw, sparse) and plug it in; the guest sees `name` as its serial number."""
    path = _file(name)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.truncate(file, mib * 2**20)
        monitor = qmp.Monitor(connection)
        fdset = pass_file(monitor, connection, file)
        try:
            protocol = {"driver": "file", "filename": f"/dev/fdset/{fdset}", "discard": "unmap"}
            monitor.ask("blockdev-add", **{"driver": "raw", "node-name": name, "discard": "unmap", "file": protocol})
            _plug(monitor, driver="virtio-blk-pci", id=name, drive=name, serial=name)
        finally:
            monitor.ask("remove-fd", **{"fdset-id": fdset})  # QEMU keeps what it has opened
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(file)


def add_nic(monitor: qmp.Monitor, name: str, mac: str) -> None:
    """Plug in a network card, on a separate network.

    It offers no route: a guest that used it would send answers that way, too, and SSH would lose its sessions.
    """
    monitor.ask("netdev_add", type="user", id=f"{name}-net", restrict=True)
    try:
        _plug(monitor, driver="virtio-net-pci", id=name, netdev=f"{name}-net", mac=mac, romfile="")
    except qmp.Refused:
        monitor.ask("netdev_del", id=f"{name}-net")
        raise


def join(connection: socket.socket, name: str, mac: str, *how: str) -> bridged_nic.Taken:
    """Plug in a network card that takes over the interface with this MAC; return the interface's properties.

    If it is `open`, nothing is closed to it (see isolation.py); if `hidden`, the host's firewall does not see what it
    sends (see bridged_nic.py); with `any`, it may send from any address (see sources.py).

    Raises interfaces.Missing, ToolError or End, too.
    """
    if bridged_nic.exists(mac):
        raise qmp.Refused(f"the interface with the MAC {mac} has been joined already")
    settings = Settings.from_env(os.environ)
    taken = bridged_nic.look(mac, MAX_MTU, for_host=settings.isolated and "open" not in how)
    monitor = qmp.Monitor(connection)
    with contextlib.ExitStack() as undo:
        tap = make_tap(bridged_nic.tap_name(mac))
        try:
            pass_descriptor(connection, tap)
            monitor.ask("getfd", fdname=f"{name}-tap")
        finally:
            os.close(tap)
        try:
            monitor.ask("netdev_add", type="tap", id=f"{name}-net", fd=f"{name}-tap")
        except qmp.Refused:
            monitor.ask("closefd", fdname=f"{name}-tap")  # this removes the tap, too
            raise
        undo.callback(monitor.ask, "netdev_del", id=f"{name}-net")
        undo.callback(bridged_nic.give_back, taken)
        with isolation.unchanged():
            closed = None if "open" in how else isolation.look(settings, taken.addresses)
            bridged_nic.connect(taken, closed, hidden="hidden" in how, any_sender="any" in how)
        card = {"driver": "virtio-net-pci", "netdev": f"{name}-net", "mac": mac, "romfile": ""}
        _plug(monitor, id=name, host_mtu=taken.mtu, **card)
        undo.pop_all()
    return taken


def remove(monitor: qmp.Monitor, name: str, *, reset: bool = False) -> None:
    """Unplug a device that was added; wait until the guest has released it.

    A guest that does not run never does: `reset` resets the machine, which releases it (acpi_pcihp_reset of QEMU).
    """
    disk = _file(name)
    mac = None if disk.exists() else monitor.ask("qom-get", path=f"/machine/peripheral/{name}", property="mac")
    monitor.ask("device_del", id=name)
    if reset:
        monitor.ask("system_reset")
    deadline = time.monotonic() + _UNPLUG_SECONDS
    while name in _present(monitor):
        if time.monotonic() > deadline:
            raise qmp.Refused(f"the guest has not released {name} in {_UNPLUG_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
    if mac is None:
        _delete_node(monitor, name, deadline)
        disk.unlink()
    else:
        if bridged_nic.exists(mac):
            bridged_nic.disconnect(mac)
        monitor.ask("netdev_del", id=f"{name}-net")


def _delete_node(monitor: qmp.Monitor, name: str, deadline: float) -> None:
    """Delete a block node; its device was removed, but may release it a moment later."""
    while True:
        try:
            monitor.ask("blockdev-del", **{"node-name": name})
        except qmp.Refused as refusal:
            if "in use" not in str(refusal) or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def added(monitor: qmp.Monitor) -> list[str]:
    """List the devices that the machine did not have at its start."""
    return sorted(_present(monitor) - BUILT_IN)


def added_disks(monitor: qmp.Monitor) -> list[str]:
    """List the disks among them."""
    return [name for name in added(monitor) if _file(name).exists()]


def _file(name: str) -> Path:
    return _FILES / f"{name}.raw"


def pass_file(monitor: qmp.Monitor, connection: socket.socket, file: int) -> int:
    """Pass an open file to QEMU; return its number in the names `/dev/fdset/NUMBER`."""
    pass_descriptor(connection, file)
    return int(monitor.ask("add-fd")["fdset-id"])


def pass_descriptor(connection: socket.socket, file: int) -> None:
    """Send an open file for the next command."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]).tobytes())]
    connection.sendmsg([b" "], rights)  # white space between two commands


def _plug(monitor: qmp.Monitor, **device: Any) -> None:
    """Plug a device into the first free root port, or into the bus of a machine without any."""
    buses = [f"plug{each}" for each in range(PLUGS)] if "plug0" in _present(monitor) else ["pci.0"]
    for bus in buses:
        try:
            monitor.ask("device_add", bus=bus, **device)
        except qmp.Refused as refusal:
            if "slot 0 function 0" not in str(refusal) and "not available" not in str(refusal):
                raise
        else:
            DEVICES_ADDED.touch()
            return
    raise qmp.Refused(f"all {PLUGS} slots for added devices are taken: remove one first")


def _present(monitor: qmp.Monitor) -> set[str]:
    listed = monitor.ask("qom-list", path="/machine/peripheral")
    return {each["name"] for each in listed if each["type"].startswith("child<")}


def main(arguments: list[str]) -> int:
    """Run the command: exit code 1 when QEMU or the disk refuses, 2 for wrong usage."""
    if not re.fullmatch(
        rf"(add-disk {_NAME} [1-9]\d{{0,8}}|add-nic {_NAME} {interfaces.MAC}"
        rf"|join {_NAME} {interfaces.MAC}( open| hidden)?( any)?|remove {_NAME}( --reset)?)",
        " ".join(arguments),
    ):
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        with qmp.connect() as connection:
            match arguments:
                case ["add-disk", name, mib]:
                    add_disk(connection, name, int(mib))
                case ["add-nic", name, mac]:
                    add_nic(qmp.Monitor(connection), name, mac)
                case ["join", name, mac, *how]:
                    taken = join(connection, name, mac, *how)
                    print(json.dumps({"mac": mac, "addresses": taken.addresses, "mtu": taken.mtu}))
                case [_, name, *how]:
                    remove(qmp.Monitor(connection), name, reset=bool(how))
    except (OSError, EOFError, End, ToolError, interfaces.Missing, qmp.Refused) as error:
        print(f"device: {error or 'QEMU ended'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
