"""Tar streams for containers and image builds: written piece by piece, read without unpacking to disk."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

END = bytes(2 * tarfile.BLOCKSIZE)
"""The mark that ends a tar stream."""
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Link:
    """A symbolic link to put into a container."""

    target: str


def entry(name: str, content: bytes | Link, *, mode: int = 0o600, modified: int = 0) -> bytes:
    """Return one small file, or a link, as root's; `modified` in seconds since 1970."""
    about = tarfile.TarInfo(name)
    about.mtime = modified
    if isinstance(content, Link):
        about.type, about.linkname = tarfile.SYMTYPE, content.target
        return about.tobuf(tarfile.GNU_FORMAT)
    about.size, about.mode = len(content), mode
    return about.tobuf(tarfile.GNU_FORMAT) + content + _padding(len(content))


def folder(name: str) -> bytes:
    """Return a folder that only root can write to."""
    about = tarfile.TarInfo(name)
    about.type, about.mode = tarfile.DIRTYPE, 0o755
    return about.tobuf(tarfile.GNU_FORMAT)


def large_entry(name: str, pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield one file of `size` bytes, which is private to root, without holding it in memory."""
    about = tarfile.TarInfo(name)
    about.size, about.mode = size, 0o600
    yield about.tobuf(tarfile.GNU_FORMAT)
    yield from pieces
    yield _padding(size)


def read_file(pieces: Iterable[bytes]) -> bytes:
    """Return the content of the first file of a small tar stream; empty if its first member is not a file."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        content = tar.extractfile(tar.getmembers()[0])
        return b"" if content is None else content.read()


def extract_file(pieces: Iterable[bytes], path: str, target: Path) -> None:
    """Write the first file of a tar stream to a new private file; long runs of zeros become holes.

    Args:
        pieces: the stream.
        path: the file's name for error messages.
        target: the new file, which must not exist yet.

    Raises:
        OSError: the stream has no file or is cut short, or `target` exists.
    """
    stream: Any = Pieces(iter(pieces))
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            about = tar.next()
            content = None if about is None else tar.extractfile(about)
            if content is None:
                raise OSError(f"{path} is not a file")
            _write_sparse(content, target)
    except tarfile.TarError as error:
        raise OSError(f"the stream was cut short: {error}") from error


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _write_sparse(content: IO[bytes], target: Path) -> None:
    created = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(created, "wb") as file:
        while data := content.read(_CHUNK_BYTES):
            if data.strip(b"\0"):
                file.write(data)
            else:
                file.seek(len(data), io.SEEK_CUR)
        file.truncate()


class Pieces:
    """An iterator over bytes as a file to read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int) -> bytes:
        """Return `size` bytes, or what is left."""
        gathered, length = [self._rest], len(self._rest)
        while length < size and (piece := next(self._pieces, b"")):
            gathered.append(piece)
            length += len(piece)
        data = b"".join(gathered)
        self._rest = data[size:]
        return data[:size]
