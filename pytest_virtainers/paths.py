"""Folders on this machine that outlive a run: private, per user, small."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def cache_folder() -> Path:
    """Give (and make) our folder under `XDG_CACHE_HOME`; it holds locks and nothing that costs to lose."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pytest-virtainers"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(what: str) -> Iterator[None]:
    """Hold the lock called `what` against all processes of this user; the kernel frees it when we die."""
    from filelock import FileLock

    with FileLock(cache_folder() / f"{what}.lock"):
        yield


def build_contexts() -> Path:
    """Give the folder with the images' build contexts: in the wheel beside this module, else in the work tree."""
    packaged = Path(__file__).parent / "images"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "images"
