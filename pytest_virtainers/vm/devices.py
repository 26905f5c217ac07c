"""Disks, network cards, screen and keyboard."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.config import parsing
from pytest_virtainers.errors import EngineError, VirtainerError
from pytest_virtainers.vm.power import Power

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from ipaddress import IPv4Address

    from pytest_virtainers.vm.network import Network

_TABLET_MAX = 0x7FFF  # INPUT_EVENT_ABS_MAX (include/ui/input.h)
_PICTURE_SECONDS = 20.0  # with KVM; QEMU itself is given 10 to answer
_MAC_PREFIX = "52:54:00:76:70"
# QEMU's names of the keys of a US keyboard (qapi/ui.json, QKeyCode); those of capitals and the like take Shift.
_PLAIN_NAMES = (
    "grave_accent minus equal bracket_left bracket_right backslash semicolon apostrophe comma dot slash spc ret tab "
    "backspace esc"
)
_PLAIN = dict(zip("`-=[]\\;',./ \n\t\b\x1b", _PLAIN_NAMES.split(), strict=True))
_SHIFTED = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))
# QEMU types one key after another: as many ms down as up. It notes 1024 steps in advance, of which a key is six, and
# drops what is beyond (ui/input.c); how far it has come, it does not tell. So it is given this many chords at a time,
# and a quarter more time than it should need for them. The keyboard itself notes 16 bytes (hw/input/ps2.c), so that a
# guest may look elsewhere for 0.3 s. At QEMU's own 10 ms, one of seven texts of 1000 characters lost some of them.
_CHORDS_AT_ONCE = 32
_HOLD_MS = 20
_KEY_SECONDS = 2 * _HOLD_MS / 1000 * 1.25
_OTHER_NAMES = {"enter": "ret", "return": "ret", "space": "spc", "escape": "esc", "del": "delete", "super": "meta_l"}


@dataclass(frozen=True)
class Disk:
    """A disk that was added to a running machine.

    Attributes:
        name: by which it can be removed; its serial number in the guest.
        path: of its device in the guest.
        size_mib: its size.
    """

    name: str
    path: str
    size_mib: int


@dataclass(frozen=True)
class Nic:
    """A network card that was added to a running machine.

    Attributes:
        name: by which it can be removed.
        mac: by which the guest's interface is found; its address on the wire.
        device: the guest's name of it.
        network: where its wire leads; None: nowhere, but to a DHCP server.
        addresses: that the guest was given there, with their prefix lengths.
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
        """Its IPv4 address; empty when it was given none."""
        return next((each.partition("/")[0] for each in self.addresses if ":" not in each), "")

    @property
    def ip6(self) -> str:
        """Its IPv6 address; empty when it was given none."""
        return next((each.partition("/")[0] for each in self.addresses if ":" in each), "")


# Other programs of the guest leave a card alone that they were not told of (images/debian: only eth0 is).
_SET_UP_NIC = """
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


class Devices(Power):
    """The part of the handle that has to do with the machine's devices."""

    _added = 0
    _disks: tuple[Disk, ...] = ()  # that were added

    def add_disk(self, size: str | int, *, timeout: float = 30.0) -> Disk:
        """Plug in an empty disk and wait until the guest has it.

        Args:
            size: MiB, or text such as `"1G"`; it takes room only as it fills.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            ValueError: the size is none.
            VirtainerError: QEMU refuses, or its host has no room.
            WaitTimeout: the guest does not show it.
        """
        __tracebackhide__ = True
        mib = parsing.size_mib(least=1)(size)
        name = self._name("disk")
        self._control("device", "add-disk", name, str(mib))
        disk = Disk(name, f"/dev/disk/by-id/virtio-{name}", mib)
        self._disks = (*self._disks, disk)
        self.wait_for_file(disk.path, timeout=timeout)
        return disk

    def remove_disk(self, disk: Disk) -> None:
        """Pull out a disk that was added, and throw it away; raises `VirtainerError` when the guest keeps it."""
        __tracebackhide__ = True
        self._pull_out(disk)

    def _pull_out(self, disk: Disk, *how: str) -> None:
        __tracebackhide__ = True
        self._control("device", "remove", disk.name, *how)
        self._disks = tuple(each for each in self._disks if each.name != disk.name)

    def add_nic(self, network: Network | None = None, ip: str | int | IPv4Address = "auto") -> Nic:
        """Plug in a network card and set it up in the guest, as often as that boots.

        On a network the guest has an address of its own on the wire: ARP, multicast, IPv6, DHCP and other protocols
        get through as they are.

        Args:
            network: where its wire leads; by default nowhere, but to a DHCP server without a way out.
            ip: `auto` (the engine's choice), `dhcp` (the guest asks; needs systemd-networkd there), `none`, an
                address, or its number in the network's subnet.

        Raises:
            EngineError: the engine has no such address, or no room on the network.
            VirtainerError: QEMU refuses, or the guest does not take the card.
        """
        __tracebackhide__ = True
        name = self._name("nic")
        with contextlib.ExitStack() as undo:
            if network is None:
                nic = Nic(name, f"{_MAC_PREFIX}:{self._added:02x}", dhcp=True)
                self._control("device", "add-nic", name, nic.mac)
                undo.callback(self._unplug, nic)
            else:
                nic = self._plug_into(network, name, ip, undo)
            nic = replace(nic, device=self._set_up_nic(nic))
            undo.pop_all()
        self._nics.append(nic)
        return nic

    def _plug_into(self, network: Network, name: str, ip: str | int | IPv4Address, undo: contextlib.ExitStack) -> Nic:
        __tracebackhide__ = True
        mac = self.container.connect(network.port(self.spec.guest_hostname, ip)).mac
        undo.callback(self._let_go_of, network)
        how = ("hidden",) if network.is_wire else () if network.has_host else ("open",)
        sender = ("any",) if ip in {"dhcp", "none"} else ()  # which addresses it will have is the guest's business
        found = json.loads(self._control("device", "join", name, mac, *how, *sender))
        addresses = () if sender else tuple(found["addresses"])
        nic = Nic(name, mac, "", network, addresses, found["mtu"], dhcp=ip == "dhcp")
        undo.callback(self._unplug, nic)
        network.join(self, mac)
        return nic

    def _unplug(self, nic: Nic) -> None:
        """Undo what was half done; that it cannot be undone does not cover why."""
        with contextlib.suppress(VirtainerError):
            self._control("device", "remove", nic.name)

    def _let_go_of(self, network: Network) -> None:
        network.leave(self)
        with contextlib.suppress(EngineError):
            self.container.disconnect(network.engine_name)

    def _set_up_nic(self, nic: Nic) -> str:
        """Have the guest use a card; give its name there."""
        __tracebackhide__ = True
        how = "dhcp" if nic.dhcp else "static"
        return self._as_root(_SET_UP_NIC, nic.mac, str(nic.mtu), how, *nic.addresses).decode().strip()

    def _after_boot(self) -> None:
        """Set the added cards up again: what the guest was told of them went with its memory."""
        __tracebackhide__ = True
        self._nics = [replace(nic, device=self._set_up_nic(nic)) for nic in self._nics]

    def _cards(self) -> frozenset[str]:
        return frozenset(nic.name for nic in self._nics)

    def _unplug_all_but(self, cards: Collection[str], *, by_reset: bool) -> None:
        __tracebackhide__ = True
        how = ("--reset",) if by_reset else ()
        for disk in self._disks:
            self._pull_out(disk, *how)
        for nic in [each for each in self._nics if each.name not in cards]:
            self._pull_out_nic(nic, *how)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks on which it has a card, that of its first one first."""
        return (self.network, *(nic.network for nic in self._nics if nic.network is not None))

    @property
    def nics(self) -> Mapping[str, Nic]:
        """The added cards that are on a network, by its name."""
        return {nic.network.name: nic for nic in self._nics if nic.network is not None}

    def remove_nic(self, nic: Nic) -> None:
        """Pull out a network card that was added; raises `VirtainerError` when the guest keeps it."""
        __tracebackhide__ = True
        self._pull_out_nic(nic)

    def _pull_out_nic(self, nic: Nic, *how: str) -> None:
        __tracebackhide__ = True
        self._control("device", "remove", nic.name, *how)
        self._nics = [each for each in self._nics if each.name != nic.name]
        if nic.network is not None:
            nic.network.leave(self)
            self.container.disconnect(nic.network.engine_name)

    def link_down(self, nic: Nic | None = None) -> None:
        """Pull the cable out of a card that was added, or of the first one.

        Without that one, SSH waits until it is in again, except in a clone that still has its template's session.
        """
        __tracebackhide__ = True
        self.qmp("set_link", name=nic.name if nic else "nic0", up=False)

    def link_up(self, nic: Nic | None = None) -> None:
        """Put the cable into a card again."""
        __tracebackhide__ = True
        self.qmp("set_link", name=nic.name if nic else "nic0", up=True)

    def screenshot(self, path: str | Path) -> Path:
        """Write what the screen shows to a PNG file; works without SSH, and when the guest hangs.

        Raises:
            VirtainerError: QEMU gives no picture.
        """
        __tracebackhide__ = True
        target = Path(path)
        target.write_bytes(self._picture())
        return target

    def _picture(self) -> bytes:
        __tracebackhide__ = True
        return self._control("screenshot", patience=self.scaled(_PICTURE_SECONDS))

    def click(self, x: int, y: int, *, button: str = "left") -> None:
        """Click at a point of the screen; the guest needs a driver for virtio tablets, as Linux has.

        Args:
            x: pixels from the left, as in a screenshot.
            y: pixels from the top.
            button: `left`, `middle` or `right`.

        Raises:
            ValueError: the screen has no such point.
            VMGone: the machine does not run; it would feel nothing.
            VirtainerError: QEMU knows no such button, or gives no picture.
        """
        __tracebackhide__ = True
        if self._halted:
            self._check_alive()
        width, height = struct.unpack(">II", self._picture()[16:24])  # PNG's IHDR
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"{x},{y} is not on the screen of {self.name}, which has {width}x{height} pixels")
        position = [
            {"type": "abs", "data": {"axis": axis, "value": round(part * _TABLET_MAX)}}
            for axis, part in (("x", (x + 0.5) / width), ("y", (y + 0.5) / height))
        ]
        presses = [[{"type": "btn", "data": {"button": button, "down": down}}] for down in (True, False)]
        self._ask_qemu(*(("input-send-event", {"events": events}) for events in (position, *presses)))

    def send_keys(self, *chords: str) -> None:
        """Press keys together, one chord after another: `vm.send_keys("ctrl-alt-f2", "enter")`; takes 50 ms a key.

        Names are QEMU's (`qapi/ui.json`: `a`, `f2`, `ret`, `ctrl`), and `enter`, `space`, `escape`.

        Raises:
            VMGone: the machine does not run; it would hear nothing.
            VirtainerError: QEMU knows no such key.
        """
        __tracebackhide__ = True
        if self._halted:
            self._check_alive()
        pressed = [[_OTHER_NAMES.get(key, key) for key in chord.lower().split("-")] for chord in chords]
        for start in range(0, len(pressed), _CHORDS_AT_ONCE):
            part = pressed[start : start + _CHORDS_AT_ONCE]
            self._ask_qemu(
                *(
                    ("send-key", {"keys": [{"type": "qcode", "data": key} for key in keys], "hold-time": _HOLD_MS})
                    for keys in part
                )
            )
            time.sleep(_KEY_SECONDS * sum(map(len, part)))

    def type(self, text: str) -> None:
        """Type text on a US keyboard, some twenty keys a second; a capital is two.

        A terminal takes 4095 characters a line.

        Raises:
            ValueError: that has no key for a character.
        """
        __tracebackhide__ = True
        self.send_keys(*(_chord(character) for character in text))

    def _name(self, kind: str) -> str:
        self._added += 1
        return f"{kind}{self._added}"


def _chord(character: str) -> str:
    if character.isascii() and character.isalnum():
        return f"shift-{character.lower()}" if character.isupper() else character
    if character in _PLAIN:
        return _PLAIN[character]
    if character in _SHIFTED:
        return f"shift-{_chord(_SHIFTED[character])}"
    raise ValueError(f"a US keyboard has no key for {character!r}")
