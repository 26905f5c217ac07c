"""Parser for a tar stream that arrives in pieces, from a sender that is not trusted.

The standard library's `tarfile` accepts garbage after the first member as the end of the stream, reads headers of any
size into memory, and returns the holes of a sparse file as zeros. Here headers are bounded, an incomplete stream is
an error, and holes cost nothing. It reads what GNU tar, bsdtar and busybox write: v7, ustar, GNU and pax
headers, and all sparse formats of GNU tar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_BLOCK = 512
_END = bytes(_BLOCK)
_MAX_HEADERS = 8 * 1024 * 1024  # of one member, with long names, pax records and the map of a sparse file
_MAX_POINTS = 1_000_000
_MAX_SIZE = 2**63 - 1
_MAX_DIGITS = 19
_SECOND = 10**9
_EARLIEST, _LATEST = -(2**31), 2**34  # seconds; file systems refuse or wrap times far outside
_TIME = re.compile(rb"(-?)(\d{1,19})(?:\.(\d*))?")


class Kind(Enum):
    """What a member is; the values are for messages."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "symbolic link"
    HARD_LINK = "hard link"
    FIFO = "FIFO"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"


_KINDS = {
    **dict.fromkeys(b"\0" + b"07S", Kind.FILE),
    ord("1"): Kind.HARD_LINK,
    ord("2"): Kind.LINK,
    ord("3"): Kind.CHARACTER_DEVICE,
    ord("4"): Kind.BLOCK_DEVICE,
    ord("5"): Kind.FOLDER,
    ord("6"): Kind.FIFO,
}


class BrokenStream(ValueError):
    """The stream is not tar, or not in a form that GNU tar, bsdtar and busybox write; the message says why."""


@dataclass(slots=True)
class Member:
    """One member; names are the sender's bytes, unchecked.

    Attributes:
        name: path.
        kind: what it is.
        mode: permission bits, with setuid, setgid and sticky.
        mtime: nanoseconds since 1970.
        size: bytes of a file, holes included.
        target: path to which a symbolic or hard link leads.
        device: major and minor number.
        segments: offset and length of each piece of a file that is data; the rest are holes.
    """

    name: bytes
    kind: Kind
    mode: int
    mtime: int
    size: int
    target: bytes
    device: tuple[int, int]
    segments: list[tuple[int, int]]


class Receiver(Protocol):
    """Receives the members, one after another."""

    def begin(self, member: Member) -> None:
        """Begin a member; calls of `write` follow if it is a file, then one of `end`."""

    def write(self, offset: int, data: bytes) -> None:
        """Receive a piece of the current file's data."""

    def end(self) -> None:
        """Complete the current member."""


class TarStream:
    """Passes the members of a stream on to `receiver` as they arrive.

    Attributes:
        whole: whether the end marker has arrived; what follows it is ignored.
    """

    def __init__(self, receiver: Receiver) -> None:
        self.whole = False
        self._pending = bytearray()
        self._headers_left = 0
        self._parsing = self._parse(receiver)

    def feed(self, data: bytes) -> None:
        """Parse a piece of the stream.

        Raises:
            BrokenStream: the stream cannot be read any further.
        """
        if not self.whole:
            self._pending += data
            next(self._parsing, None)

    def _parse(self, receiver: Receiver) -> Generator[None, None, None]:
        """Parse member by member; pauses where more data is needed."""
        while True:
            self._headers_left = _MAX_HEADERS
            block, extended, points = yield from self._headers()
            if block == _END:
                self.whole = True
                return
            stored = _decimal(extended[b"size"]) if b"size" in extended else _number(block[124:136])
            if block[156:157] == b"S":
                points = yield from self._old_sparse_map(block)
            elif b"GNU.sparse.map" in extended:
                points = [_decimal(each) for each in extended[b"GNU.sparse.map"].split(b",", _MAX_POINTS) if each]
            elif extended.get(b"GNU.sparse.major") == b"1":
                before = self._headers_left
                points = yield from self._sparse_map_in_content()
                stored -= before - self._headers_left
            member = _member(block, extended, points, stored)
            receiver.begin(member)
            for offset, length in member.segments:
                yield from self._pass_on(receiver, offset, length)
            self._headers_left = _BLOCK
            yield from self._take(-sum(length for _, length in member.segments) % _BLOCK)
            receiver.end()

    def _headers(self) -> Generator[None, None, tuple[bytes, dict[bytes, bytes], list[int]]]:
        """Read up to a member's own header: that, the fields that replace its own, and the map of a sparse file."""
        extended: dict[bytes, bytes] = {}
        points: list[int] = []
        while True:
            block = yield from self._take(_BLOCK)
            if block == _END:
                return block, extended, points
            _check_sum(block)
            kind = block[156:157]
            if kind not in (b"x", b"g", b"L", b"K"):
                return block, extended, points
            size = _number(block[124:136])
            content = (yield from self._take(size + -size % _BLOCK))[:size]
            if kind == b"L":
                extended[b"path"] = _text(content)
            elif kind == b"K":
                extended[b"linkpath"] = _text(content)
            elif kind == b"x":  # global records (`g`) are comments of those who made an archive
                for key, value in _records(content):
                    if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                        points.append(_decimal(value))
                    else:
                        extended[key] = value

    def _take(self, size: int) -> Generator[None, None, bytes]:
        """Remove so many bytes of headers from the front of the stream."""
        self._headers_left -= size
        if size < 0 or self._headers_left < 0:
            raise BrokenStream(f"a member has headers of more than {_MAX_HEADERS // 2**20} MiB")
        while len(self._pending) < size:
            yield
        taken = bytes(self._pending[:size])
        del self._pending[:size]
        return taken

    def _pass_on(self, receiver: Receiver, offset: int, length: int) -> Generator[None, None, None]:
        while length:
            while not self._pending:
                yield
            data = bytes(self._pending[:length])
            del self._pending[:length]
            receiver.write(offset, data)
            offset, length = offset + len(data), length - len(data)

    def _old_sparse_map(self, block: bytes) -> Generator[None, None, list[int]]:
        """Read the map of GNU tar's own format: four segments in the header, the others in separate blocks."""
        points = _numbers(block[386:482])
        more = block[482]
        while more:
            block = yield from self._take(_BLOCK)
            points += _numbers(block[:504])
            more = block[504]
        return points

    def _sparse_map_in_content(self) -> Generator[None, None, list[int]]:
        """Read the map of version 1.0, lines before the content: how many segments, then two numbers for each."""
        numbers: list[int] = []
        rest = b""
        while not numbers or len(numbers) <= 2 * numbers[0]:
            if len(rest) > _MAX_DIGITS:
                raise BrokenStream("the map of a sparse file is damaged")
            *lines, rest = (rest + (yield from self._take(_BLOCK))).split(b"\n")
            numbers += map(_decimal, lines)
        return numbers[1:]


def _member(block: bytes, extended: dict[bytes, bytes], points: list[int], stored: int) -> Member:
    """Compose a member; `stored` is the size of its content in the stream, `points` the map of a sparse file."""
    kind = _KINDS.get(block[156])
    if kind is None:
        raise BrokenStream(f"a member is of the unknown type {block[156:157]!r}")
    name, prefix = _text(block[:100]), _text(block[345:500])
    if prefix and block[257:263] == b"ustar\0":  # GNU tar has other things there
        name = prefix + b"/" + name
    name = extended.get(b"GNU.sparse.name", extended.get(b"path", name))
    if block[156] == 0 and name.endswith(b"/"):
        kind = Kind.FOLDER
    real = extended.get(b"GNU.sparse.realsize", extended.get(b"GNU.sparse.size"))
    size = stored if real is None else _decimal(real)
    if block[156:157] == b"S":
        size = _number(block[483:495])
    sparse = real is not None or block[156:157] == b"S"
    segments = _segments(points if sparse else [0, stored], size, stored) if kind is Kind.FILE else []
    return Member(
        name=name,
        kind=kind,
        mode=_number(block[100:108]) & 0o7777,
        mtime=_time(extended[b"mtime"]) if b"mtime" in extended else _limited(_number(block[136:148])) * _SECOND,
        size=size,
        target=extended.get(b"linkpath", _text(block[157:257])),
        device=(_number(block[329:337]), _number(block[337:345]))
        if kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
        else (0, 0),
        segments=segments,
    )


def _segments(points: list[int], size: int, stored: int) -> list[tuple[int, int]]:
    """Pair offsets and lengths; they must follow each other, within `size`, and be as much as is stored."""
    pairs = [(offset, length) for offset, length in zip(points[::2], points[1::2], strict=False) if length]
    end = 0
    for offset, length in pairs:
        if length < 0 or offset < end:
            raise BrokenStream("the map of a sparse file is damaged")
        end = offset + length
    if end > size or not 0 <= size <= _MAX_SIZE or sum(length for _, length in pairs) != stored:
        raise BrokenStream("the size of a file is damaged")
    return pairs


def _check_sum(block: bytes) -> None:
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != _number(block[148:156]):
        raise BrokenStream("a header is damaged")


def _number(field: bytes) -> int:
    """Read octal digits, or GNU's binary form for what needs more."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)  # noqa: PLR2004
    digits = _text(field).strip()
    if digits.strip(b"01234567"):
        raise BrokenStream("a header is damaged")
    return int(digits or b"0", 8)


def _numbers(fields: bytes) -> list[int]:
    return [_number(fields[at : at + 12]) for at in range(0, len(fields), 12)]


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise BrokenStream("a number in a pax header is damaged")
    return int(digits)


def _time(text: bytes) -> int:
    """Read a time of a pax header: seconds with a fraction, as nanoseconds."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise BrokenStream("a time in a pax header is damaged")
    sign, seconds, fraction = found.groups()
    time = _limited(int(seconds)) * _SECOND + int((fraction or b"")[:9].ljust(9, b"0"))
    return -time if sign else time


def _limited(seconds: int) -> int:
    return min(max(seconds, _EARLIEST), _LATEST)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split pax records, each `LENGTH KEY=VALUE` and a newline."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + _MAX_DIGITS + 1)
        if space < 0:
            raise BrokenStream("a pax header is damaged")
        end = at + _decimal(data[at:space])
        if end <= space + 1 or data[end - 1 : end] != b"\n":
            raise BrokenStream("a pax header is damaged")
        key, _, value = data[space + 1 : end - 1].partition(b"=")
        yield key, value
        at = end
