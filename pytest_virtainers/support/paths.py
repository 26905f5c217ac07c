"""The user's private cache folder, and locks in it against other processes."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.errors import SpecError
from pytest_virtainers.support.forks import disown_in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_POLL_SECONDS = 0.05
LOCK_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
"""The flags for opening lock files."""


def cache_folder() -> Path:
    """Return the cache folder, created if necessary; it holds locks, downloads and data that can be recreated.

    Raises:
        SpecError: the folder cannot be created, or other users could change its content.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pytest-virtainers"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home folder
        raise SpecError(_no_place_for_locks(error)) from error
    if why := why_unsafe(folder):
        raise SpecError(
            f"{folder}: {why}: another user could replace the locks and downloads in it. Fix that, or set "
            "XDG_CACHE_HOME to a folder of this user"
        )
    return folder


def why_unsafe(folder: Path) -> str:
    """Return why other users could change the content of a folder, with a remedy; empty if they cannot.

    Raises:
        OSError: the folder does not exist.
    """
    found, user = folder.lstat(), os.geteuid()
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder"
        return f"it is {what} (remove it)"
    if found.st_uid != user:
        return f"it belongs to user {found.st_uid}, and this is user {user} (chown {user}, or remove it)"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"its mode {stat.S_IMODE(found.st_mode):04o} lets others write to it (chmod 700)"
    return ""


class Lock:
    """An exclusive lock, also against threads of this process; released by `close` or the end of the process."""

    def __init__(self, file: int) -> None:
        self._file: int | None = file
        disown_in_child(self)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    disown = close  # closes a forked child's copy; the parent keeps the lock


def locked(what: str, waiting: Callable[[], object] = lambda: None) -> Lock:
    """Acquire the lock `what` among all processes of this user; leaving the `with` block releases it.

    Args:
        what: name of the lock.
        waiting: called again and again while another process has the lock.

    Raises:
        SpecError: the lock file cannot be written.
    """
    path = cache_folder() / f"{what}.lock"
    try:
        file = os.open(path, LOCK_FILE, 0o600)
    except OSError as error:
        raise SpecError(_no_place_for_locks(error)) from error
    lock = Lock(file)
    try:
        while not _acquire(file):
            waiting()
            time.sleep(_POLL_SECONDS)
    except BaseException:
        lock.close()
        raise
    return lock


def _acquire(file: int) -> bool:
    """Lock a file unless another process has locked it; return whether it is locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise SpecError(_no_place_for_locks(error)) from error
    return True


def _no_place_for_locks(error: Exception) -> str:
    return (
        f"cannot create locks: {error}. Set XDG_CACHE_HOME to a folder that this user can write to and that all "
        "runs share"
    )


def build_contexts() -> Path:
    """Return the folder with the images' build contexts: that of the wheel, or of the work tree."""
    packaged = Path(__file__).parents[1] / "_contexts"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "images"
