"""Temporary folders of this process, private to this user; those of processes that were killed are swept."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

_NAME = re.compile(r"virtainers-[a-z]+-by-(\d+)-.*")


def folder(purpose: str) -> tempfile.TemporaryDirectory[str]:
    """Make one for `purpose` (a word)."""
    return tempfile.TemporaryDirectory(prefix=f"virtainers-{purpose}-by-{os.getpid()}-")


def sweep() -> None:
    """Remove what is left of processes that have ended without a word."""
    for each in Path(tempfile.gettempdir()).glob("virtainers-*"):
        made = _NAME.fullmatch(each.name)
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
            if made and each.lstat().st_uid == os.getuid() and not _lives(int(made[1])):
                shutil.rmtree(each, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
