"""The guest's screen, keyboard and pointer: for tests, and for a VNC viewer (RFC 6143) of a person."""

from __future__ import annotations

import contextlib
import functools
import io
import secrets
import struct
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.errors import EngineError, UsageError
from pytest_virtainers.vm.tunnels import join, listening

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Iterator

    from pytest_virtainers.engine.base import Stream
    from pytest_virtainers.vm.machine import Machine

_TABLET_MAX = 0x7FFF  # INPUT_EVENT_ABS_MAX (include/ui/input.h)
_PICTURE_SECONDS = 20.0  # with KVM; QEMU itself has 10 to answer
# QEMU's names of the keys of a US keyboard (qapi/ui.json, QKeyCode); those of capitals and the like take Shift.
_PLAIN_NAMES = (
    "grave_accent minus equal bracket_left bracket_right backslash semicolon apostrophe comma dot slash spc ret tab "
    "backspace esc"
)
_PLAIN = dict(zip("`-=[]\\;',./ \n\t\b\x1b", _PLAIN_NAMES.split(), strict=True))
_SHIFTED = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))
# QEMU types one key after another: as many ms down as up. It queues 1024 steps, of which a key takes six, and drops
# the rest (ui/input.c); it does not report how far it is. So it gets this many chords at a time, and a quarter more
# time than it should take for them. The keyboard queues 16 bytes (hw/input/ps2.c), so a guest may be busy for 0.3 s.
# With QEMU's own 10 ms, one of seven texts of 1000 characters lost some of them.
_CHORDS_AT_ONCE = 32
_HOLD_MS = 20
_KEY_SECONDS = 2 * _HOLD_MS / 1000 * 1.25
_OTHER_NAMES = {"enter": "ret", "return": "ret", "space": "spc", "escape": "esc", "del": "delete", "super": "meta_l"}
_NOVNC = "/usr/share/novnc"
_PASSWORD_BYTES = 6  # eight characters, of which VNC takes no more


@dataclass(frozen=True)
class Display:
    """The address of a screen for VNC viewers; as text it is a URL, `vnc://127.0.0.1:40123`.

    Attributes:
        host: an address of this machine.
        port: the TCP port there.
        password: the password that the viewer asks for.
    """

    host: str
    port: int
    password: str

    def __str__(self) -> str:
        return f"vnc://{self.host}:{self.port}"


class Screen:
    """The screen of a VM, with keyboard and pointer: `vm.screen`. It works without SSH, and when the guest hangs."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def screenshot(self, path: str | Path) -> Path:
        """Write what the screen shows to a PNG file; return its path.

        Raises:
            VirtainerError: QEMU delivers no picture.

        Example:
            `vm.screen.screenshot(tmp_path / "login.png")`
        """
        __tracebackhide__ = True
        target = Path(path)
        target.write_bytes(self._picture())
        return target

    def _picture(self) -> bytes:
        __tracebackhide__ = True
        return self._machine.control("screenshot", patience=self._machine.scaled(_PICTURE_SECONDS))

    def click(self, x: int, y: int, *, button: str = "left") -> None:
        """Click at a point of the screen; the guest needs a driver for virtio tablets, as Linux has.

        Args:
            x: pixels from the left, as in a screenshot.
            y: pixels from the top.
            button: `left`, `middle` or `right`.

        Raises:
            UsageError: the screen has no such point.
            VMGone: the machine does not run.
            VirtainerError: QEMU knows no such button, or delivers no picture.
        """
        __tracebackhide__ = True
        self._machine.health.check_not_halted()
        width, height = struct.unpack(">II", self._picture()[16:24])  # PNG's IHDR
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(
                f"{x},{y} is not on the screen of {self._machine.name}, which has {width}x{height} pixels"
            )
        position = [
            {"type": "abs", "data": {"axis": axis, "value": round(part * _TABLET_MAX)}}
            for axis, part in (("x", (x + 0.5) / width), ("y", (y + 0.5) / height))
        ]
        presses = [[{"type": "btn", "data": {"button": button, "down": down}}] for down in (True, False)]
        self._machine.qmp.execute_all(*(("input-send-event", {"events": each}) for each in (position, *presses)))

    def send_keys(self, *chords: str) -> None:
        """Press keys together, one chord after another; each key takes 50 ms.

        Args:
            chords: QEMU's names of keys, joined by `-` (`qapi/ui.json`: `a`, `f2`, `ret`, `ctrl`); `enter`, `space`
                and `escape` are names, too.

        Raises:
            VMGone: the machine does not run.
            VirtainerError: QEMU knows no such key.

        Example:
            `vm.screen.send_keys("ctrl-alt-f2", "enter")`
        """
        __tracebackhide__ = True
        self._machine.health.check_not_halted()
        pressed = [[_OTHER_NAMES.get(key, key) for key in chord.lower().split("-")] for chord in chords]
        for start in range(0, len(pressed), _CHORDS_AT_ONCE):
            part = pressed[start : start + _CHORDS_AT_ONCE]
            self._machine.qmp.execute_all(
                *(
                    ("send-key", {"keys": [{"type": "qcode", "data": key} for key in keys], "hold-time": _HOLD_MS})
                    for keys in part
                )
            )
            time.sleep(_KEY_SECONDS * sum(map(len, part)))

    def type(self, text: str) -> None:
        """Type text on a US keyboard, about twenty keys a second; a capital letter is two keys.

        A terminal accepts 4095 characters a line.

        Raises:
            UsageError: the keyboard has no key for a character.
            VMGone: the machine does not run.
        """
        __tracebackhide__ = True
        self.send_keys(*(chord_of(character) for character in text))

    @contextlib.contextmanager
    def vnc(self, *, port: int = 0) -> Iterator[Display]:
        """Open a local address for any number of VNC viewers, for the duration of the block.

        Args:
            port: on this machine's 127.0.0.1; 0: any free port.

        Raises:
            VMGone: the machine has ended.
            OSError: the port is in use.
        """
        __tracebackhide__ = True
        self._machine.health.check_qemu()
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        with listening(f"{self._machine.name}-vnc", functools.partial(self._show, password), port) as given:
            yield Display("127.0.0.1", given, password)

    @contextlib.contextmanager
    def novnc(self, *, port: int = 0) -> Iterator[str]:
        """Serve a local web page that shows the screen, for the duration of the block (requires the extra `novnc`).

        The block gets its URL. The password is in the part of it that browsers do not send.

        Args:
            port: on this machine's 127.0.0.1; 0: any free port.

        Raises:
            UsageError: the package that serves the page is not installed.
            VMGone: the machine has ended.
            EngineError: the page could not be copied out of its container.
            OSError: the port is in use.
        """
        __tracebackhide__ = True
        try:
            from pytest_virtainers.vm import page
        except ModuleNotFoundError as error:
            raise UsageError(
                f"a page with noVNC needs the package {error.name}: pip install 'pytest-virtainers[novnc]'"
            ) from None
        with self.vnc() as display, page.serving(self._page(), display, port) as url:
            yield url

    def _page(self) -> dict[str, bytes]:
        """Return noVNC's files by their paths on a server."""
        pieces = self._machine.container.archive(_NOVNC)
        if pieces is None:
            raise EngineError(f"{self._machine.name}: its container has no {_NOVNC}: another version has made it")
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
            members = [(member.name, tar.extractfile(member)) for member in tar if member.isfile()]
            return {f"/{name.partition('/')[2]}": file.read() for name, file in members if file is not None}

    def _show(self, password: str, viewer: socket.socket, over: threading.Event) -> None:
        with viewer, contextlib.suppress(EngineError, OSError):  # the viewer sees its connection end
            stream = self._machine.container.stream(["vnc", "--password"])
            stream.settimeout(None)
            channel = _Channel(stream)
            channel.sendall(f"{password}\n".encode())  # each time: QEMU has one, and there may be other blocks
            join(viewer, channel, over)


class _Channel:
    """An exec stream with the interface that `join` requires."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.recv = stream.recv
        self.shutdown_write = stream.close_input
        self.closed = False

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        while data:
            data = data[self._stream.send(data) :]

    def close(self) -> None:
        """Close the stream."""
        self.closed = True
        self._stream.close()


def chord_of(character: str) -> str:
    """Return the chord that types a character on a US keyboard; raise `UsageError` if there is none."""
    if character.isascii() and character.isalnum():
        return f"shift-{character.lower()}" if character.isupper() else character
    if character in _PLAIN:
        return _PLAIN[character]
    if character in _SHIFTED:
        return f"shift-{chord_of(_SHIFTED[character])}"
    raise UsageError(f"a US keyboard has no key for {character!r}")
