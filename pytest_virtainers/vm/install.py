"""Install what arrives from a guest at its destination, without following symbolic links there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.vm.no_follow import create, entered, is_folder, names, write_at
from pytest_virtainers.vm.shown import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE = b"tree"
"""The name of what arrives while it is in its private folder."""

_CHUNK_BYTES = 1024 * 1024


class Refused(Exception):
    """What the guest sent is not accepted, or cannot be installed at its place; the message says why."""


@contextlib.contextmanager
def destination(dest: str | os.PathLike[str], name: bytes) -> Iterator[tuple[int, int, bytes | None, Path]]:
    """Open the place for `name`: in `dest` if that is a folder or ends with `/`, at `dest` otherwise.

    Yields:
        Descriptors of a new private folder and of the folder of the place, which are on one file system; the place's
        name in that, `None` for the folder itself; and its path.
    """
    path, known = Path(dest), os.fspath(dest).endswith("/")
    if known:
        path.mkdir(parents=True, exist_ok=True)
    elif path.is_symlink() and path.is_dir():
        raise Refused(
            f"{path} is a symbolic link to a folder, and links at the destination are not followed. Name the folder "
            f"itself ({shown(os.fsencode(path.resolve()))}), or end it with / to follow the link"
        )
    inside = known or path.is_dir()
    folder = path if inside else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if inside and not known else 0))
    try:
        with _private_folder(at) as private:
            if not inside:
                yield private, at, os.fsencode(path.name), path
            elif name == b".":
                yield private, at, None, path
            else:
                yield private, at, name, path / os.fsdecode(name)
    finally:
        os.close(at)


@contextlib.contextmanager
def _private_folder(at: int) -> Iterator[int]:
    """Create a private folder for what arrives; remove it, and what is still in it, after the block."""
    name = f".virtainer.{secrets.token_hex(8)}".encode()
    os.mkdir(name, 0o700, dir_fd=at)
    try:
        with entered(at, name) as private:
            try:
                yield private
            finally:  # by its descriptor: another process may have replaced the folder of that name
                with contextlib.suppress(OSError):
                    os.unlink(TREE, dir_fd=private)
                shutil.rmtree(TREE, ignore_errors=True, dir_fd=private)
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=at)


def check_place(source: int, name: bytes, dest: int, as_name: bytes, above: tuple[bytes, ...] = ()) -> None:
    """Raise `Refused` if an entry cannot be installed because only one of it and what is there is a folder.

    Args:
        source: descriptor of the folder that it is in.
        name: its name there.
        dest: descriptor of the folder into which it is to be moved.
        as_name: its name there.
        above: path of `dest`, for the message.
    """
    try:
        there = os.lstat(as_name, dir_fd=dest).st_mode
    except FileNotFoundError:
        return
    is_dir, path = is_folder(name, source), (*above, as_name)
    if stat.S_ISDIR(there) and is_dir:
        with entered(source, name) as below, entered(dest, as_name) as beneath:
            for each in names(below):
                check_place(below, each, beneath, each, path)
    elif stat.S_ISDIR(there) or (is_dir and not stat.S_ISLNK(there)):
        here, guest = ("folder", "file") if stat.S_ISDIR(there) else ("file", "folder")
        raise Refused(f"{shown(b'/'.join(path))} is a {here} here and a {guest} in the guest. Remove it first")


def place(source: int, name: bytes, dest: int, as_name: bytes) -> None:
    """Move an entry from one folder into another: files and links are replaced, folders are merged.

    Args: as those of `check_place`.
    """
    is_dir = is_folder(name, source)
    if is_dir:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(as_name, dir_fd=dest).st_mode):
                os.unlink(as_name, dir_fd=dest)  # it would prevent the folder from being moved there
    if not (is_dir and is_folder(as_name, dest)):
        try:
            os.rename(name, as_name, src_dir_fd=source, dst_dir_fd=dest)
        except OSError as error:
            if error.errno != errno.EXDEV:  # something is mounted below the destination
                raise
            if not is_dir:
                _copy(source, name, dest, as_name)
                return
            os.mkdir(as_name, 0o700, dir_fd=dest)
        else:
            return
    with entered(source, name) as below, entered(dest, as_name) as beneath:
        for each in names(below):
            place(below, each, beneath, each)


def _copy(source: int, name: bytes, dest: int, as_name: bytes) -> None:
    """Copy a file or link to another file system, and rename it there."""
    temporary = f".virtainer.{secrets.token_hex(8)}".encode()
    found = os.lstat(name, dir_fd=source)
    try:
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), temporary, dir_fd=dest)
        elif stat.S_ISREG(found.st_mode):
            _copy_content(source, name, dest, temporary)
        else:
            os.mknod(temporary, found.st_mode, found.st_rdev, dir_fd=dest)
        times = (found.st_atime_ns, found.st_mtime_ns)
        os.utime(temporary, ns=times, dir_fd=dest, follow_symlinks=False)
        os.rename(temporary, as_name, src_dir_fd=dest, dst_dir_fd=dest)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dest)
        raise


def _copy_content(source: int, name: bytes, dest: int, as_name: bytes) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=source)
    try:
        writer = create(as_name, dest)
        try:
            found, end = os.fstat(reader), 0
            while end < found.st_size:
                try:
                    start = os.lseek(reader, end, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # there is only a hole left
                        raise
                    break
                end = os.lseek(reader, start, os.SEEK_HOLE)
                while start < end:
                    data = os.pread(reader, min(_CHUNK_BYTES, end - start), start)
                    write_at(writer, start, data)
                    start += len(data)
            os.ftruncate(writer, found.st_size)
            os.fchmod(writer, stat.S_IMODE(found.st_mode))
        finally:
            os.close(writer)
    finally:
        os.close(reader)
