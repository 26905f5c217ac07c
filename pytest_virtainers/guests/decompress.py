"""Unpack `.gz`, `.xz` and `.zst` piece by piece; everything else passes as it is."""

from __future__ import annotations

import lzma
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # with the header and trailer of gzip
_LONGEST_MAGIC = 6
_PIECE_BYTES = 1024  # which empty room of a disk may become some 30 MiB of
_MOST_BYTES = 2**40
_MOST_MEMORY_BYTES = 2**29  # `xz -9` needs 65 MiB; the format would allow for 4 GiB


class Damaged(Exception):
    """This is not what its beginning says; the text says so."""


class Unpacker:
    """Takes pieces of a file, and writes those of what is in it.

    What is packed may be several files one after another, as all three formats allow.

    Args:
        write: gets what is unpacked.
        most: bytes that may come out. A few kilobytes can hold a bomb that fills any disk.
    """

    def __init__(self, write: Callable[[bytes], object], most: int = _MOST_BYTES) -> None:
        self._write = write
        self._left = self._most = most
        self._head = b""
        self._begun = False
        self._format: _Format | None = None
        self._machine: Any = None
        self._error: type[Exception] = Damaged

    @staticmethod
    def takes(head: bytes) -> bool:
        """Tell by its first bytes whether a file is packed."""
        return any(head.startswith(each.magic) for each in _FORMATS)

    def write(self, data: bytes) -> None:
        """Take a piece; raises Damaged."""
        if not self._begun:
            self._head += data
            if len(self._head) < _LONGEST_MAGIC:
                return
            data = self._begin()
        self._take(data)

    def end(self) -> None:
        """Write what is left; raises Damaged when something is missing."""
        if not self._begun:
            self._take(self._begin())
        if self._format is not None and self._machine is not None:
            raise Damaged(f"its {self._format.name} data is cut short")

    def _begin(self) -> bytes:
        self._begun = True
        self._format = next((each for each in _FORMATS if self._head.startswith(each.magic)), None)
        return self._head

    def _take(self, data: bytes) -> None:
        if self._format is None:
            self._write(data)
            return
        for at in range(0, len(data), _PIECE_BYTES):
            self._unpack(self._format, data[at : at + _PIECE_BYTES])

    def _unpack(self, packed: _Format, data: bytes) -> None:
        while data:
            if self._machine is None:
                data = data.lstrip(b"\0")  # padding between files, and at the end
                if not data:
                    return
                self._machine, self._error = packed.start()
            try:
                plain = self._machine.decompress(data)
            except self._error as error:
                raise Damaged(f"its {packed.name} data is wrong ({error})") from None
            self._left -= len(plain)
            if self._left < 0:
                raise Damaged(
                    f"its {packed.name} data becomes more than {self._most / 2**30:g} GiB: if that is right, unpack "
                    "it, make it qcow2 with qemu-img convert, and give the path of that"
                )
            self._write(plain)
            if not self._machine.eof:
                return
            data, self._machine = self._machine.unused_data, None


class _Format(NamedTuple):
    """A way to pack files: how they begin; `start` gives who unpacks one (as zlib does), and what that raises."""

    name: str
    magic: bytes
    start: Callable[[], tuple[Any, type[Exception]]]


def _xz() -> tuple[Any, type[Exception]]:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY_BYTES), lzma.LZMAError


def _zstd() -> tuple[Any, type[Exception]]:
    import zstandard  # not for those who need none

    return zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


_FORMATS = (
    _Format("gzip", b"\x1f\x8b", lambda: (zlib.decompressobj(_GZIP_WINDOW), zlib.error)),
    _Format("xz", b"\xfd7zXZ\x00", _xz),
    _Format("zstd", b"\x28\xb5\x2f\xfd", _zstd),
)
