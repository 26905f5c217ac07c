"""Folders on this machine that outlive a run: private, per user, small."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

_TELL_SECONDS = 0.5


def cache_folder() -> Path:
    """Give (and make) our folder under `XDG_CACHE_HOME`; it holds locks and nothing that costs to lose.

    Raises:
        SpecError: it cannot be made.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pytest-virtainers"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        raise SpecError(_no_place_for_locks(error)) from error
    return folder


def locked(what: str, waiting: Callable[[], object] = lambda: None) -> AbstractContextManager[object]:
    """Take the lock called `what` against all processes of this user; leaving a `with` block or dying frees it.

    `waiting` is called twice a second as long as another process has it.

    Raises:
        SpecError: there is no place for locks.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(cache_folder() / f"{what}.lock")
    while True:
        try:
            return lock.acquire(timeout=_TELL_SECONDS)
        except Timeout:
            waiting()
        except OSError as error:
            raise SpecError(_no_place_for_locks(error)) from error


def _no_place_for_locks(error: Exception) -> str:
    return (
        f"the locks against other processes of this user have no place: {error}. "
        "Set XDG_CACHE_HOME to a folder that this user can write and that all runs share"
    )


def build_contexts() -> Path:
    """Give the folder with the images' build contexts: in the wheel beside this module, else in the work tree."""
    packaged = Path(__file__).parent / "images"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "images"
