"""Folders on this machine that outlive a run: private, per user, small."""

from __future__ import annotations

import contextlib
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

_TELL_SECONDS, _POLL_SECONDS = 0.5, 0.05
LOCK_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
"""How files with locks are opened."""


def cache_folder() -> Path:
    """Give (and make) our folder under `XDG_CACHE_HOME`; it holds locks and nothing that costs to lose.

    Raises:
        SpecError: it cannot be made, or others could change what is in it.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pytest-virtainers"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        raise SpecError(_no_place_for_locks(error)) from error
    if why := why_unsafe(folder):
        raise SpecError(
            f"{folder}: {why}: someone else could replace the locks and downloads in it. Mend that, or set "
            "XDG_CACHE_HOME to a folder of this user"
        )
    return folder


def why_unsafe(folder: Path) -> str:
    """Return why others could change what is in a folder, with the remedy; empty when only this user and root can.

    Raises:
        OSError: it is not there.
    """
    found, user = folder.lstat(), os.geteuid()
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no folder"
        return f"it is {what} (remove it)"
    if found.st_uid != user:
        return f"it belongs to user {found.st_uid}, and this is user {user} (chown {user}, or remove it)"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it, by its mode {stat.S_IMODE(found.st_mode):04o} (chmod 700)"
    return ""


class Lock:
    """A lock against all others, also threads of this process: held until `close`, or the process's end."""

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
        """Give it back."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    disown = close  # a forked child's copy: the lock is its parent's until that closes its own


def locked(what: str, waiting: Callable[[], object] = lambda: None) -> Lock:
    """Take the lock called `what` against all processes of this user; leaving a `with` block or dying frees it.

    `waiting` is called twice a second as long as another process has it.

    Raises:
        SpecError: there is no place for locks.
    """
    path = cache_folder() / f"{what}.lock"
    try:
        file = os.open(path, LOCK_FILE, 0o600)
    except OSError as error:
        raise SpecError(_no_place_for_locks(error)) from error
    lock, last = Lock(file), time.monotonic()
    with contextlib.ExitStack() as undo:
        undo.callback(lock.close)
        while not _is_ours(file):
            if time.monotonic() - last >= _TELL_SECONDS:
                waiting()
                last = time.monotonic()
            time.sleep(_POLL_SECONDS)
        undo.pop_all()
    return lock


def _is_ours(file: int) -> bool:
    """Lock a file unless someone else has; return whether it is locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise SpecError(_no_place_for_locks(error)) from error
    return True


def _no_place_for_locks(error: Exception) -> str:
    return (
        f"the locks against other processes of this user have no place: {error}. "
        "Set XDG_CACHE_HOME to a folder that this user can write and that all runs share"
    )


def build_contexts() -> Path:
    """Give the folder with the images' build contexts: in the wheel beside this module, else in the work tree."""
    packaged = Path(__file__).parents[1] / "_contexts"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "images"
