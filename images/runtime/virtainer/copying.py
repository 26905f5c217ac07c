"""Copies of large files: blocks are shared where the file system can, and holes stay holes."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h: ioctl_ficlonerange(2)
_MOST_BYTES = 2**30  # sendfile(2) does not copy more than 2 GiB at a time


def sparse(source: Path, target: Path) -> None:
    """Copy a file to a new one that only its owner can read. Raises OSError."""
    with source.open("rb", buffering=0) as file:
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if not _cloned(file.fileno(), copy):
                _copy_data(file.fileno(), copy)
        finally:
            os.close(copy)


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # most file systems cannot
        return False
    return True


def _copy_data(source: int, target: int) -> None:
    length = os.fstat(source).st_size
    os.ftruncate(target, length)
    after = 0
    while after < length:
        try:
            start = os.lseek(source, after, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # the rest is a hole
                raise
            return
        after = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        while start < after:
            copied = os.sendfile(target, source, start, min(after - start, _MOST_BYTES))
            if not copied:  # it was truncated
                raise OSError(errno.EIO, "the file ended while it was copied")
            start += copied
