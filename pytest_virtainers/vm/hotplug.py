"""Disks and network cards that are added to a running machine, and removed from it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_virtainers.errors import EngineError, VirtainerError

if TYPE_CHECKING:
    from collections.abc import Collection
    from ipaddress import IPv4Address

    from pytest_virtainers.vm.machine import Machine
    from pytest_virtainers.vm.network import Network
    from pytest_virtainers.vm.vm import VM

_MAC_PREFIX = "52:54:00:76:70"


@dataclass(frozen=True)
class Disk:
    """A disk that was added to a running VM.

    Attributes:
        name: its name, which is its serial number in the guest.
        path: its device in the guest.
        size_mib: its size in MiB.
    """

    name: str
    path: str
    size_mib: int


@dataclass(frozen=True)
class Nic:
    """A network card that was added to a running VM.

    Attributes:
        name: its name.
        mac: its address on the wire, by which the guest's interface is found.
        device: the name of that interface in the guest.
        network: the network that it is connected to; `None`: none, only a DHCP server.
        addresses: the guest's addresses there, with their prefix lengths.
        mtu: of its network, in bytes.
        dhcp: whether the guest asks for an address.
    """

    name: str
    mac: str
    device: str = ""
    network: Network | None = None
    addresses: tuple[str, ...] = ()
    mtu: int = 1500
    dhcp: bool = False

    @property
    def ip(self) -> str:
        """The IPv4 address; empty if the guest was given none."""
        return next((each.partition("/")[0] for each in self.addresses if ":" not in each), "")

    @property
    def ip6(self) -> str:
        """The IPv6 address; empty if the guest was given none."""
        return next((each.partition("/")[0] for each in self.addresses if ":" in each), "")


# Nothing else in the guest configures the card (images/debian: only eth0 is configured there).
_SET_UP = """
set -eu
mac=$1 mtu=$2 how=$3
shift 3
tries=0 name=
while [ -z "$name" ]; do
    for each in /sys/class/net/*/device; do
        each=${each%/device}
        if [ "$(cat "$each/address")" = "$mac" ]; then name=${each##*/}; fi
    done
    tries=$((tries + 1))
    if [ -n "$name" ]; then break; fi
    if [ "$tries" -gt 200 ]; then echo "the guest does not show the network card $mac" >&2; exit 1; fi
    sleep 0.1
done
if [ "$how" = dhcp ] && systemctl is-active --quiet systemd-networkd; then
    # The first card stays the way out.
    mkdir -p /run/systemd/network
    {
        echo "[Match]" && echo "MACAddress=$mac" && echo "[Network]" && echo "DHCP=yes"
        echo "[DHCPv4]" && echo "RouteMetric=4096" && echo "UseHostname=no"
    } >"/run/systemd/network/70-virtainer-$name.network"
    networkctl reload
fi
ip link set dev "$name" mtu "$mtu" up
for address; do ip addr replace "$address" dev "$name"; done
echo "$name"
"""


class Hotplug:
    """The disks and network cards that were added to one machine.

    Args:
        machine: the machine.
        vm: the `VM` of this machine, for the lists of VMs on its networks.

    Attributes:
        nics: the cards.
    """

    def __init__(self, machine: Machine, vm: VM) -> None:
        self._machine, self._vm = machine, vm
        self._count = 0
        self._disks: list[Disk] = []
        self.nics: list[Nic] = []

    def _control(self, *words: str) -> bytes:
        __tracebackhide__ = True
        return self._machine.control("device", *words)

    def add_disk(self, mib: int) -> Disk:
        """Add an empty disk of so many MiB."""
        __tracebackhide__ = True
        self._count += 1
        name = f"disk{self._count}"
        self._control("add-disk", name, str(mib))
        disk = Disk(name, f"/dev/disk/by-id/virtio-{name}", mib)
        self._disks.append(disk)
        return disk

    def remove_disk(self, disk: Disk, *options: str) -> None:
        """Remove a disk; raise `VirtainerError` if the guest keeps it. `options` are those of the command."""
        __tracebackhide__ = True
        self._control("remove", disk.name, *options)
        self._disks = [each for each in self._disks if each.name != disk.name]

    def add_nic(self, network: Network | None, ip: str | int | IPv4Address) -> Nic:
        """Add a network card and set it up in the guest, as `Nics.add` documents."""
        __tracebackhide__ = True
        self._count += 1
        name = f"nic{self._count}"
        with contextlib.ExitStack() as undo:
            if network is None:
                nic = Nic(name, f"{_MAC_PREFIX}:{self._count:02x}", dhcp=True)
                self._control("add-nic", name, nic.mac)
                undo.callback(self._unplug, nic)
            else:
                nic = self._plug_into(network, name, ip, undo)
            nic = replace(nic, device=self._set_up(nic))
            undo.pop_all()
        self.nics.append(nic)
        return nic

    def _plug_into(self, network: Network, name: str, ip: str | int | IPv4Address, undo: contextlib.ExitStack) -> Nic:
        __tracebackhide__ = True
        machine = self._machine
        mac = machine.container.connect(network.port(machine.spec.guest_hostname, ip)).mac
        undo.callback(self._disconnect, network)
        how = ("hidden",) if network.is_wire else () if network.has_host else ("open",)
        sender = ("any",) if ip in {"dhcp", "none"} else ()  # the guest chooses its addresses
        found = json.loads(self._control("join", name, mac, *how, *sender))
        addresses = () if sender else tuple(found["addresses"])
        nic = Nic(name, mac, "", network, addresses, found["mtu"], dhcp=ip == "dhcp")
        undo.callback(self._unplug, nic)
        network.join(self._vm, mac)
        return nic

    def _unplug(self, nic: Nic) -> None:
        """Undo `add_nic` after a failure, which an error here must not hide."""
        with contextlib.suppress(VirtainerError):
            self._control("remove", nic.name)

    def _disconnect(self, network: Network) -> None:
        network.leave(self._vm)
        with contextlib.suppress(EngineError):
            self._machine.container.disconnect(network.engine_name)

    def _set_up(self, nic: Nic) -> str:
        """Configure a card in the guest; return its interface there."""
        __tracebackhide__ = True
        how = "dhcp" if nic.dhcp else "static"
        found = self._machine.run_as_root(_SET_UP, nic.mac, str(nic.mtu), how, *nic.addresses)
        return found.decode().strip()

    def set_up_nics(self) -> None:
        """Configure the cards again after a boot: their configuration was in the guest's memory."""
        __tracebackhide__ = True
        self.nics = [replace(nic, device=self._set_up(nic)) for nic in self.nics]

    def remove_nic(self, nic: Nic, *options: str) -> None:
        """Remove a card; raise `VirtainerError` if the guest keeps it. `options` are those of the command."""
        __tracebackhide__ = True
        self._control("remove", nic.name, *options)
        self.nics = [each for each in self.nics if each.name != nic.name]
        if nic.network is not None:
            nic.network.leave(self._vm)
            self._machine.container.disconnect(nic.network.engine_name)

    @property
    def nic_names(self) -> frozenset[str]:
        """The names of the cards."""
        return frozenset(nic.name for nic in self.nics)

    def remove_all_except(self, nic_names: Collection[str], *, by_reset: bool) -> None:
        """Remove all disks, and all cards except some.

        Args:
            nic_names: the cards that stay.
            by_reset: reset the machine, because its guest does not run and cannot release them.

        Raises:
            VirtainerError: the guest keeps one.
        """
        __tracebackhide__ = True
        options = ("--reset",) if by_reset else ()
        for disk in self._disks:
            self.remove_disk(disk, *options)
        for nic in [each for each in self.nics if each.name not in nic_names]:
            self.remove_nic(nic, *options)
