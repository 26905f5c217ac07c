"""Shared file locks that mark what a process uses; they end with the process, even if it is killed."""

from __future__ import annotations

import fcntl
import os
import threading
from typing import TYPE_CHECKING

from pytest_virtainers.support.forks import disown_in_child
from pytest_virtainers.support.paths import LOCK_FILE, cache_folder

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class SharedLocks:
    """The shared locks of one part of this process, by names of any kind; thread-safe."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        disown_in_child(self)

    def __enter__(self) -> SharedLocks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, what: str) -> None:
        """Lock `what` until `close`."""
        with self._lock:
            if what not in self._files:
                file = os.open(_file(what), LOCK_FILE, 0o600)
                fcntl.flock(file, fcntl.LOCK_SH)
                os.utime(file)
                self._files[what] = file

    def close(self) -> None:
        """Release all locks."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def disown(self) -> None:
        """Close a forked child's copies; the parent keeps its locks."""
        self._lock = threading.Lock()
        self.close()


def last_locked(what: str) -> int:
    """Return when `what` was last locked, in seconds since 1970; 0 if that is unknown."""
    try:
        return int(_file(what).stat().st_mtime)
    except FileNotFoundError:
        return 0


def is_locked(what: str) -> bool:
    """Return whether any process has locked `what`."""
    try:
        file = os.open(_file(what), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _file(what: str) -> Path:
    return cache_folder() / f"{what.replace('/', '-')}.held"
