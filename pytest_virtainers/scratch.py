"""Temporary folders of this process, private to this user; those of processes that were killed are swept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from pytest_virtainers.engine import owner

_PREFIX = "virtainers-scratch-"
_OWNER = ".owner.json"


def folder(purpose: str) -> tempfile.TemporaryDirectory[str]:
    """Make one for `purpose` (a word); the file `.owner.json` in it says whose it is."""
    made = tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{purpose}-")
    Path(made.name, _OWNER).write_text(json.dumps(owner.labels("scratch", "")))
    return made


def sweep() -> None:
    """Remove what is left of processes that have ended without a word; in doubt, it stays."""
    for each in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another process may sweep, too, or has not yet written whose it is.
        with contextlib.suppress(OSError, ValueError):
            if each.lstat().st_uid == os.getuid() and owner.is_dead(json.loads((each / _OWNER).read_text())):
                shutil.rmtree(each, ignore_errors=True)
