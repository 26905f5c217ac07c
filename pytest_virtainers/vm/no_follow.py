"""Folders and files by descriptors, one part of a path at a time, so that no symbolic link is followed."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


@contextlib.contextmanager
def entered(at: int, name: bytes) -> Iterator[int]:
    """Open a folder, which must not be a link."""
    folder = os.open(name, _FOLDER, dir_fd=at)
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def descended(at: int, path: Sequence[bytes]) -> Iterator[int]:
    """Open the folder `path` below `at`, as `descend` does, and close it in the end."""
    folder = descend(at, path)
    try:
        yield folder
    finally:
        os.close(folder)


def descend(at: int, path: Sequence[bytes], *, make: bool = False) -> int:
    """Open the folder `path` below `at`, one part after another, so that none is a link."""
    folder = os.dup(at)
    for each in path:
        try:
            try:
                below = os.open(each, _FOLDER, dir_fd=folder)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(each, 0o700, dir_fd=folder)
                below = os.open(each, _FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        folder = below
    return folder


def create(name: bytes, at: int) -> int:
    """Create a private file for writing; nothing of that name may be there."""
    return os.open(name, _NEW_FILE, 0o600, dir_fd=at)


def is_folder(name: bytes, at: int) -> bool:
    """Return whether there is a folder of that name; a link to one does not count."""
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=at).st_mode)
    except FileNotFoundError:
        return False


def names(folder: int) -> list[bytes]:
    """Return what is in a folder."""
    return [os.fsencode(each) for each in os.listdir(folder)]


def write_at(file: int, offset: int, data: bytes) -> None:
    """Write all of `data` at `offset`."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written
