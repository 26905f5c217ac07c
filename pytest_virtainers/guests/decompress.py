"""Decompress `.gz`, `.xz` and `.zst` files, recognized by their first bytes.

This uses the decompressor objects of zlib, lzma and zstandard, not their file objects: `LZMAFile` has no memory
limit, and zstandard's reader does not report a truncated file.
"""

from __future__ import annotations

import hashlib
import lzma
import zlib
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from pytest_virtainers.support.files import open_private
from pytest_virtainers.support.progress import bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # expect the header and trailer of gzip
_LONGEST_MAGIC = 6
_CHUNK_BYTES, _BLOCK_BYTES = 1024 * 1024, 1024  # a block of compressed zeros may become 30 MiB
_MAX_BYTES = 2**40
_MAX_MEMORY_BYTES = 2**29  # `xz -9` needs 65 MiB; the format allows 4 GiB


class Damaged(Exception):
    """The compressed data is damaged or too large; the message is a phrase about the file."""


class _Format(NamedTuple):
    """A compression format; `start` returns a decompressor object and the exception that it raises."""

    name: str
    magic: bytes
    start: Callable[[], tuple[Any, type[Exception]]]


def _xz() -> tuple[Any, type[Exception]]:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_MEMORY_BYTES), lzma.LZMAError


def _zstd() -> tuple[Any, type[Exception]]:
    import zstandard  # only when a file needs it

    return zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


_FORMATS = (
    _Format("gzip", b"\x1f\x8b", lambda: (zlib.decompressobj(_GZIP_WINDOW), zlib.error)),
    _Format("xz", b"\xfd7zXZ\x00", _xz),
    _Format("zstd", b"\x28\xb5\x2f\xfd", _zstd),
)


def _formats(path: Path) -> list[_Format]:
    """Return the format of a file, or nothing."""
    with path.open("rb") as file:
        head = file.read(_LONGEST_MAGIC)
    return [each for each in _FORMATS if head.startswith(each.magic)]


def is_compressed(path: Path) -> bool:
    """Return whether a file starts like a compressed one."""
    return bool(_formats(path))


def decompress(source: Path, target: Path, report: Callable[[str], object], limit: int = _MAX_BYTES) -> str:
    """Decompress a file into `target` and return the SHA-256 of its content.

    Args:
        source: a file that `is_compressed`; it may hold several compressed streams in sequence.
        target: a private file, created or overwritten.
        report: called with the progress.
        limit: bytes to write at most; a few kilobytes can hold a bomb that fills any disk.

    Raises:
        Damaged: the data is damaged, truncated, or exceeds a limit.
    """
    (kind,) = _formats(source)
    sha256, size = hashlib.sha256(), source.stat().st_size
    with source.open("rb") as file, open_private(target, "wb") as out:
        blocks = _blocks(file, lambda: report(f"decompressing {bar(file.tell(), size)}"))
        for piece in _pieces(blocks, kind, limit):
            sha256.update(piece)
            out.write(piece)
    return sha256.hexdigest()


def _blocks(file: IO[bytes], advanced: Callable[[], object]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        advanced()
        for at in range(0, len(chunk), _BLOCK_BYTES):
            yield chunk[at : at + _BLOCK_BYTES]


def _pieces(blocks: Iterable[bytes], kind: _Format, limit: int) -> Iterator[bytes]:
    """Yield the decompressed content of a file."""
    left, decompressor = limit, None
    error: type[Exception] = Damaged
    for block in blocks:
        data = block
        while data:
            if decompressor is None:
                data = data.lstrip(b"\0")  # padding between streams and at the end
                if not data:
                    break
                decompressor, error = kind.start()
            try:
                piece = decompressor.decompress(data)
            except error as reason:
                raise Damaged(f"its {kind.name} data is invalid ({reason})") from None
            left -= len(piece)
            if left < 0:
                raise Damaged(
                    f"its {kind.name} data exceeds {limit / 2**30:g} GiB when decompressed. If that is intended, "
                    "decompress it, convert it with qemu-img convert -O qcow2, and use the path of the result"
                )
            yield piece
            data, decompressor = (decompressor.unused_data, None) if decompressor.eof else (b"", decompressor)
    if decompressor is not None:
        raise Damaged(f"its {kind.name} data is truncated")
