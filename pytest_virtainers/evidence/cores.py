"""Core dumps of a guest, as evidence.

The guest is not trusted: it may list anything, any number of times, and send anything. So the files get names of
ours, their content is copied unchanged, and number, size and time are limited.
"""

from __future__ import annotations

import os
import re
from typing import IO, TYPE_CHECKING

from pytest_virtainers.errors import RootCommandTimeout, VirtainerError
from pytest_virtainers.vm.limited import Limited, TooMuch
from pytest_virtainers.vm.shown import shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_virtainers.vm.transfer import RootShell

LIST = "list.txt"
_MIB = 1024 * 1024
_MAX_CORES = 20
_MAX_LIST_BYTES = 64 * 1024
_MAX_CORE_BYTES, _MAX_ALL_BYTES = 512 * _MIB, 1024 * _MIB
_MAX_NAME, _MAX_PATH = 80, 4096
_PAGE = 4096
_NO_FILE = 44
# A pattern (core(5)) says where the kernel writes core dumps: each %x stands for a text, and the process id may
# follow it. Of many, as of a service that is restarted again and again, the newest are copied.
FIND = r"""
{
    read -r pattern </proc/sys/kernel/core_pattern
    case $pattern in
        /*) (IFS=; ls -1tdp -- $(printf %s "$pattern" | sed 's/%.\{0,1\}/*/g; s/$/*/') 2>/dev/null) | grep -v '/$' ;;
    esac
    find /var/lib/systemd/coredump /var/crash -type f -exec ls -1t {} + 2>/dev/null
} | head -n 20
"""
READ = f'[ -f "$1" ] && [ ! -L "$1" ] || exit {_NO_FILE}; exec cat -- "$1"'


def collect(shell: RootShell, folder: Path, seconds_left: Callable[[], float]) -> dict[str, str]:
    """Copy the core dumps of a guest into `folder`, with a list of their paths there.

    Args:
        shell: root shell of the guest.
        folder: local path, which must not exist; it is created if there are core dumps.
        seconds_left: returns the seconds that the next step may take.

    Returns:
        The reason why each missing file is missing, by its name in the evidence.

    Raises:
        VirtainerError: the core dumps could not be listed.
    """
    paths = _find(shell, seconds_left())
    if not paths:
        return {}
    folder.mkdir(mode=0o700)
    missing, found, room = {}, [], _MAX_ALL_BYTES
    for number, path in enumerate(paths, 1):
        name = f"core-{number}-{_plain(path)}"
        with _create(folder / name) as file:
            try:
                why = _copy(shell, path, file, min(room, _MAX_CORE_BYTES), seconds_left())
            finally:
                size = file.tell()
        if why:
            missing[f"{folder.name}/{name}"] = f"its end: {why}" if size else why
        if size or not why:
            found.append(f"{name}  {shown(path, _MAX_PATH)}\n")
            room -= size
        else:
            (folder / name).unlink()
    if found:
        with _create(folder / LIST) as file:
            file.write("".join(found).encode())
    else:
        folder.rmdir()
    return missing


def _find(shell: RootShell, seconds: float) -> list[bytes]:
    """Return the paths of core dumps, the newest first; ignore what is not an absolute path."""
    listed = Limited(_MAX_LIST_BYTES)
    try:
        code, said = shell(["sh", "-c", FIND], stdin=None, stdout=listed, timeout=seconds)
    except TooMuch:
        code = 0
    if code != 0:
        raise VirtainerError(f"core dumps could not be listed: {shown(said.encode())}")
    paths = (each for each in bytes(listed.data).split(b"\n") if each.startswith(b"/") and b"\0" not in each)
    return list(dict.fromkeys(paths))[:_MAX_CORES]


def _copy(shell: RootShell, path: bytes, file: IO[bytes], limit: int, seconds: float) -> str:
    """Copy one core dump, with holes for pages of zeros; return why it is not complete, or an empty text."""
    sink = _SparseFile(file, limit)
    script = ["sh", "-c", READ, "sh", path.decode("utf-8", "surrogateescape")]
    try:
        code, said = shell(script, stdin=None, stdout=sink, timeout=seconds)
    except TooMuch:
        return f"it is larger than {limit // _MIB} MiB" if limit else "there is no room left for it"
    except RootCommandTimeout:
        return f"it did not finish within {seconds:.0f} s"
    except VirtainerError as error:
        return str(error).partition("\n")[0]
    finally:
        sink.end()
    if code == _NO_FILE:
        return "it is not a regular file"
    return "" if code == 0 else shown(said.strip().encode()) or f"exit code {code}"


class _SparseFile:
    """Writes at most `limit` bytes into a file; pages of zeros become holes."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit = file, limit

    def __call__(self, data: bytes) -> None:
        room = self._limit - self._file.tell()
        self._write(data[:room])
        if len(data) > room:
            raise TooMuch

    def _write(self, data: bytes) -> None:
        at, size = 0, self._file.tell()
        while at < len(data):
            piece = data[at : at + _PAGE - (size + at) % _PAGE]
            if piece.count(0) == len(piece):
                self._file.seek(len(piece), os.SEEK_CUR)
            else:
                self._file.write(piece)
            at += len(piece)

    def end(self) -> None:
        """Set the length of the file, as it may end with a hole."""
        self._file.truncate()


def _plain(path: bytes) -> str:
    """Return the last part of a path as a file name that is safe everywhere."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", path.rpartition(b"/")[2].decode(errors="replace"))[:_MAX_NAME]


def _create(path: Path) -> IO[bytes]:
    """Create a private file; fail if there is one of this name, even a link."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb")
