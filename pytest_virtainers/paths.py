"""Folders on this machine that outlive a run: private, per user, small."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

_TELL_SECONDS = 0.5


def cache_folder() -> Path:
    """Give (and make) our folder under `XDG_CACHE_HOME`; it holds locks and nothing that costs to lose."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pytest-virtainers"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def locked(what: str, waiting: Callable[[], object] = lambda: None) -> AbstractContextManager[object]:
    """Take the lock called `what` against all processes of this user; leaving a `with` block or dying frees it.

    `waiting` is called twice a second as long as another process has it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(cache_folder() / f"{what}.lock")
    while True:
        try:
            return lock.acquire(timeout=_TELL_SECONDS)
        except Timeout:
            waiting()


def build_contexts() -> Path:
    """Give the folder with the images' build contexts: in the wheel beside this module, else in the work tree."""
    packaged = Path(__file__).parent / "images"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "images"
