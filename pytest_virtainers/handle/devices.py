"""Disks, network cards, screen and keyboard."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pytest_virtainers import values
from pytest_virtainers.handle.power import Power

_PICTURE_SECONDS = 20.0  # with KVM; QEMU itself is given 10 to answer
_MAC_PREFIX = "52:54:00:76:70"
# QEMU's names of the keys of a US keyboard (qapi/ui.json, QKeyCode); those of capitals and the like take Shift.
_PLAIN_NAMES = (
    "grave_accent minus equal bracket_left bracket_right backslash semicolon apostrophe comma dot slash spc ret tab "
    "backspace esc"
)
_PLAIN = dict(zip("`-=[]\\;',./ \n\t\b\x1b", _PLAIN_NAMES.split(), strict=True))
_SHIFTED = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))
# QEMU types one key after another: 10 ms down, 10 ms up. It notes 1024 steps in advance, of which a key is six, and
# drops what is beyond (ui/input.c); how far it has come, it does not tell. So it is given this many chords at a time,
# and half as much time again as it should need for them.
_CHORDS_AT_ONCE = 32
_KEY_SECONDS = 0.03
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
    """A network card that was added to a running machine, on a network of its own with DHCP.

    Attributes:
        name: by which it can be removed.
        mac: by which the guest's interface is found.
    """

    name: str
    mac: str


class Devices(Power):
    """The part of the handle that has to do with the machine's devices."""

    _added = 0

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
        mib = values.size_mib(least=1)(size)
        name = self._name("disk")
        self._control("device", "add-disk", name, str(mib))
        disk = Disk(name, f"/dev/disk/by-id/virtio-{name}", mib)
        self.wait_for_file(disk.path, timeout=timeout)
        return disk

    def remove_disk(self, disk: Disk) -> None:
        """Pull out a disk that was added, and throw it away; raises `VirtainerError` when the guest keeps it."""
        __tracebackhide__ = True
        self._control("device", "remove", disk.name)

    def add_nic(self) -> Nic:
        """Plug in a network card, on a network of its own: DHCP, DNS and a way out where the machine has one.

        Raises:
            VirtainerError: QEMU refuses.
        """
        __tracebackhide__ = True
        name = self._name("nic")
        mac = f"{_MAC_PREFIX}:{self._added:02x}"
        self._control("device", "add-nic", name, mac)
        return Nic(name, mac)

    def remove_nic(self, nic: Nic) -> None:
        """Pull out a network card that was added; raises `VirtainerError` when the guest keeps it."""
        __tracebackhide__ = True
        self._control("device", "remove", nic.name)

    def link_down(self, nic: Nic | None = None) -> None:
        """Pull the cable out of a card that was added, or of the first one: then SSH waits until it is in again."""
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
        picture = self._control("screenshot", patience=self.scaled(_PICTURE_SECONDS))
        target = Path(path)
        target.write_bytes(picture)
        return target

    def send_keys(self, *chords: str) -> None:
        """Press keys together, one chord after another: `vm.send_keys("ctrl-alt-f2", "enter")`; takes 30 ms a key.

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
                *(("send-key", {"keys": [{"type": "qcode", "data": key} for key in keys]}) for keys in part)
            )
            time.sleep(_KEY_SECONDS * sum(map(len, part)))

    def type(self, text: str) -> None:
        """Type text on a US keyboard, some thirty keys a second; a capital is two.

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
