"""Unpack `.gz`, `.xz` and `.zst` piece by piece; everything else passes as it is."""

from __future__ import annotations

import lzma
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # with the header and trailer of gzip
_LONGEST_MAGIC = 6
_PIECE_BYTES = 1024 * 1024


class Damaged(Exception):
    """This is not what its beginning says; the text says so."""


class Unpacker:
    """Takes pieces of a file, and writes those of what is in it.

    What is packed may be several files one after another, as all three formats allow.

    Args:
        write: gets what is unpacked.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._head = b""
        self._format: _Format | None = None
        self._begun = False
        self._machine: Any = None

    def write(self, data: bytes) -> None:
        """Take a piece; raises Damaged."""
        if not self._begun:
            self._head += data
            if len(self._head) < _LONGEST_MAGIC:
                return
            data, self._head = self._head, b""
            self._begin(data)
        self._unpack(data)

    def end(self) -> None:
        """Write what is left; raises Damaged when something is missing."""
        if not self._begun:
            self._begin(self._head)
            self._unpack(self._head)
        if self._format is not None and self._machine is not None:
            raise Damaged(f"its {self._format.name} data is cut short")

    def _begin(self, head: bytes) -> None:
        self._begun = True
        self._format = next((each for each in _FORMATS if head.startswith(each.magic)), None)

    def _unpack(self, data: bytes) -> None:
        if self._format is None:
            self._write(data)
            return
        while data:
            if self._machine is None:
                data = data.lstrip(b"\0")  # padding between files, and at the end
                if not data:
                    return
                self._machine = self._format.machine()
            try:
                self._write(self._machine.decompress(data))
            except self._format.errors() as error:
                raise Damaged(f"its {self._format.name} data is wrong ({error})") from None
            if not self._machine.eof:
                return
            data, self._machine = self._machine.unused_data, None


class _Format:
    """A way to pack files: how they begin, and who unpacks them (`decompress`, `eof`, `unused_data`)."""

    name: str
    magic: bytes

    def machine(self) -> Any:
        raise NotImplementedError

    def errors(self) -> tuple[type[Exception], ...]:
        raise NotImplementedError


class _Gzip(_Format):
    name, magic = "gzip", b"\x1f\x8b"

    def machine(self) -> Any:
        return zlib.decompressobj(_GZIP_WINDOW)

    def errors(self) -> tuple[type[Exception], ...]:
        return (zlib.error,)


class _Xz(_Format):
    name, magic = "xz", b"\xfd7zXZ\x00"

    def machine(self) -> Any:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def errors(self) -> tuple[type[Exception], ...]:
        return (lzma.LZMAError,)


class _Zstandard(_Format):
    name, magic = "zstd", b"\x28\xb5\x2f\xfd"

    def machine(self) -> Any:
        import zstandard  # not for those who need none

        return zstandard.ZstdDecompressor().decompressobj()

    def errors(self) -> tuple[type[Exception], ...]:
        import zstandard

        return (zstandard.ZstdError,)


_FORMATS: tuple[_Format, ...] = (_Gzip(), _Xz(), _Zstandard())
