"""What was on a network's wires, as a pcap file.

Each VM's container records what its card sends and gets. Put together, a frame from one VM to another would be there
twice; the one of its sender stays. Format: https://www.ietf.org/archive/id/draft-gharris-opsawg-pcap-01.html
"""

from __future__ import annotations

import contextlib
import heapq
import io
import struct
import tempfile
import threading
from typing import IO, TYPE_CHECKING, NamedTuple

from pytest_virtainers.errors import EngineError, VirtainerError
from pytest_virtainers.support.forks import disown_in_child

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_virtainers.engine.base import Stream
    from pytest_virtainers.vm.core import Core

_START_SECONDS = 30.0
_END_SECONDS = 10.0
_CHUNK_BYTES = 64 * 1024
_FILE_HEADER, _FRAME_HEADER = struct.Struct("<IHHiIII"), struct.Struct("<IIII")
_NANOSECONDS, _ETHERNET = 0xA1B23C4D, 1
_SECOND = 10**9  # in ns
_HIDDEN = {b"\x88\xb5": b"\x08\x00", b"\x88\xb6": b"\x86\xdd"}
_WHOLE_FRAME = 262144  # bytes: more than any frame has


class Frame(NamedTuple):
    """One frame: when it was seen (ns since 1970), how long it was, and its bytes."""

    time: int
    length: int
    data: bytes


class Capture:
    """What the VMs of one network send and get, from now on.

    Args:
        hidden: whether IP comes with the EtherTypes by which it is hidden (images/runtime/virtainer/joined.py).
    """

    def __init__(self, *, hidden: bool = False) -> None:
        self._ethertypes = _HIDDEN if hidden else {}
        self._tracks: list[_Track] = []

    def add(self, vm: Core, mac: str) -> None:
        """Record a VM's card, too; returns when that has begun; raises `VirtainerError`."""
        stream = vm.container.stream(["capture", mac])
        try:
            self._tracks.append(_Track(stream, mac))
        except OSError as error:
            stream.close()
            raise VirtainerError(
                f"{vm.name}: capturing what its card {mac} sends and gets failed: {error}"
            ) from error

    def forget(self, mac: str) -> None:
        """Forget what a card has sent and got."""
        address = _bytes(mac)
        for track in [each for each in self._tracks if each.mac == address]:
            self._tracks.remove(track)
            track.close()

    def write(self, file: IO[bytes], *, since: float = 0.0) -> None:
        """Write what was recorded so far, since a time in seconds since 1970, to a file; raises `OSError`."""
        macs = {track.mac for track in self._tracks}
        file.write(_FILE_HEADER.pack(_NANOSECONDS, 2, 4, 0, 0, _WHOLE_FRAME, _ETHERNET))
        for frame in heapq.merge(*(track.frames(macs, int(since * 1e9)) for track in self._tracks)):
            seconds, rest = divmod(frame.time, _SECOND)
            file.write(_FRAME_HEADER.pack(seconds, rest, len(frame.data), frame.length))
            ethertype = frame.data[12:14]
            file.write(frame.data[:12] + self._ethertypes.get(ethertype, ethertype) + frame.data[14:])

    def stop(self) -> None:
        """Record no more; what was recorded can still be written."""
        for track in self._tracks:
            track.ask_to_stop()
        for track in self._tracks:
            track.stop()

    def close(self) -> None:
        """Record no more, and forget what was recorded."""
        for track in self._tracks:
            track.close()


class _Track:
    """What one card sends and gets, in a temporary file that has no name."""

    def __init__(self, stream: Stream, mac: str) -> None:
        """Start to read; raises `OSError` when nothing comes: the file's header does so when tcpdump listens."""
        self.mac = _bytes(mac)
        self._stream = stream
        stream.settimeout(_START_SECONDS)
        head = b""
        while len(head) < _FILE_HEADER.size:
            data = stream.recv(_FILE_HEADER.size - len(head))
            if not data:
                raise OSError("tcpdump has ended at once")
            head += data
        stream.settimeout(None)
        self._order = "<" if head[:4] in {b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1"} else ">"
        self._nanoseconds = 1 if struct.unpack(f"{self._order}I", head[:4])[0] == _NANOSECONDS else 1000
        # Without a buffer, which a forked child would write, too.
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (`close` does)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="virtainers-capture", daemon=True)
        self._thread.start()
        disown_in_child(self)

    def disown(self) -> None:
        """Have nothing in a forked child, which would move the place in the file at which its parent writes."""
        self._lock, self._file = threading.Lock(), io.BytesIO()

    def _read(self) -> None:
        with contextlib.suppress(OSError, EngineError):
            while data := self._stream.recv(_CHUNK_BYTES):
                with self._lock:
                    self._file.seek(0, 2)
                    self._file.write(data)

    def frames(self, macs: set[bytes], since: int) -> Iterator[Frame]:
        """Give what it sends, and what it gets from others than `macs`, from a time in ns on."""
        header, at = struct.Struct(f"{self._order}IIII"), 0
        while True:
            with self._lock:
                self._file.seek(at)
                head = self._file.read(header.size)
                if len(head) < header.size:
                    return
                seconds, rest, size, length = header.unpack(head)
                fraction = rest * self._nanoseconds
                if size > _WHOLE_FRAME or fraction >= _SECOND:
                    return  # not the header of a frame: the rest cannot be read
                data = self._file.read(size)
            if len(data) < size:
                return  # it is just being written
            at += header.size + size
            sender, when = data[6:12], seconds * _SECOND + fraction
            if when >= since and (sender == self.mac or sender not in macs):
                yield Frame(when, length, data)

    def ask_to_stop(self) -> None:
        """Let tcpdump end."""
        self._stream.close_input()

    def stop(self) -> None:
        """Wait until all that tcpdump has seen is here."""
        self._thread.join(_END_SECONDS)
        self._stream.close()
        self._thread.join(_END_SECONDS)

    def close(self) -> None:
        """Record no more, and forget what was."""
        self._stream.close()
        self._thread.join(_END_SECONDS)
        self._file.close()


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
