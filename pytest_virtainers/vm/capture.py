"""Captures of a network as pcap files.

Each VM's container records what its card sends and gets. A frame from one VM to another is recorded twice; the record
of its sender is kept. Format: https://www.ietf.org/archive/id/draft-gharris-opsawg-pcap-01.html
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
from pytest_virtainers.support.runtime_modules import protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_virtainers.engine.base import Stream
    from pytest_virtainers.vm.machine import Machine

_START_SECONDS = 30.0
_END_SECONDS = 10.0
_CHUNK_BYTES = 64 * 1024
_FILE_HEADER, _FRAME_HEADER = struct.Struct("<IHHiIII"), struct.Struct("<IIII")
_NANOSECONDS, _ETHERNET = 0xA1B23C4D, 1
_SECOND = 10**9  # in ns
_SHOWN_ETHERTYPES = {hidden.to_bytes(2): shown.to_bytes(2) for shown, hidden in protocol.HIDDEN_ETHERTYPES.items()}
_WHOLE_FRAME = 262144  # bytes: more than any frame has


class Frame(NamedTuple):
    """One frame: its time (ns since 1970), its length, and its bytes."""

    time: int
    length: int
    data: bytes


class Capture:
    """A capture of what the VMs of one network send and get, from now on.

    Args:
        hidden: whether IP has the EtherTypes that hide it (images/runtime/virtainer/bridged_nic.py).
    """

    def __init__(self, *, hidden: bool = False) -> None:
        self._ethertypes = _SHOWN_ETHERTYPES if hidden else {}
        self._tracks: list[_Track] = []

    def add(self, machine: Machine, mac: str) -> None:
        """Record a VM's card, too; return when that has begun. Raise `VirtainerError` if it cannot."""
        stream = machine.container.stream(["capture", mac])
        try:
            self._tracks.append(_Track(stream, mac))
        except OSError as error:
            stream.close()
            raise VirtainerError(
                f"{machine.name}: capturing what its card {mac} sends and gets failed: {error}"
            ) from error

    def forget(self, mac: str) -> None:
        """Delete the record of a card."""
        address = _bytes(mac)
        for track in [each for each in self._tracks if each.mac == address]:
            self._tracks.remove(track)
            track.close()

    def write(self, file: IO[bytes], *, since: float = 0.0) -> None:
        """Write the frames that were recorded after a time, in seconds since 1970; raise `OSError` if that fails."""
        macs = {track.mac for track in self._tracks}
        file.write(_FILE_HEADER.pack(_NANOSECONDS, 2, 4, 0, 0, _WHOLE_FRAME, _ETHERNET))
        for frame in heapq.merge(*(track.frames(macs, int(since * 1e9)) for track in self._tracks)):
            seconds, rest = divmod(frame.time, _SECOND)
            file.write(_FRAME_HEADER.pack(seconds, rest, len(frame.data), frame.length))
            ethertype = frame.data[12:14]
            file.write(frame.data[:12] + self._ethertypes.get(ethertype, ethertype) + frame.data[14:])

    def stop(self) -> None:
        """Stop recording; the frames can still be written."""
        for track in self._tracks:
            track.ask_to_stop()
        for track in self._tracks:
            track.stop()

    def close(self) -> None:
        """Stop recording, and delete the frames."""
        for track in self._tracks:
            track.close()


class _Track:
    """The record of one card, in a temporary file without a name."""

    def __init__(self, stream: Stream, mac: str) -> None:
        """Start to read. tcpdump sends the file's header when it listens; raise `OSError` if none comes."""
        self.mac = _bytes(mac)
        self._stream = stream
        stream.settimeout(_START_SECONDS)
        head = b""
        while len(head) < _FILE_HEADER.size:
            data = stream.recv(_FILE_HEADER.size - len(head))
            if not data:
                raise OSError("tcpdump ended at once")
            head += data
        stream.settimeout(None)
        self._order = "<" if head[:4] in {b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1"} else ">"
        self._nanoseconds = 1 if struct.unpack(f"{self._order}I", head[:4])[0] == _NANOSECONDS else 1000
        # Unbuffered: a forked child would write the buffer, too.
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (`close` does)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="virtainers-capture", daemon=True)
        self._thread.start()
        disown_in_child(self)

    def disown(self) -> None:
        """Drop the file in a forked child, which would move its parent's position in it."""
        self._lock, self._file = threading.Lock(), io.BytesIO()

    def _read(self) -> None:
        with contextlib.suppress(OSError, EngineError):
            while data := self._stream.recv(_CHUNK_BYTES):
                with self._lock:
                    self._file.seek(0, 2)
                    self._file.write(data)

    def frames(self, macs: set[bytes], since: int) -> Iterator[Frame]:
        """Yield the frames that the card sends, or gets from others than `macs`, from a time in ns on."""
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
                return  # it is being written
            at += header.size + size
            sender, when = data[6:12], seconds * _SECOND + fraction
            if when >= since and (sender == self.mac or sender not in macs):
                yield Frame(when, length, data)

    def ask_to_stop(self) -> None:
        """Ask tcpdump to end."""
        self._stream.close_input()

    def stop(self) -> None:
        """Wait until everything that tcpdump recorded has arrived."""
        self._thread.join(_END_SECONDS)
        self._stream.close()
        self._thread.join(_END_SECONDS)

    def close(self) -> None:
        """Stop recording, and delete the frames."""
        self._stream.close()
        self._thread.join(_END_SECONDS)
        self._file.close()


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
