"""Temporary folders of this process, private to this user; those of processes that were killed are swept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.engine import ownership
from pytest_virtainers.support.paths import why_unsafe

if TYPE_CHECKING:
    from types import TracebackType

_PREFIX = "virtainers-scratch-"
_OWNER = ".owner.json"


class Folder:
    """A folder of this process: removed by `cleanup`, when it is collected, or at the process's end.

    A forked child does not remove it.

    Attributes:
        name: its path.
    """

    def __init__(self, purpose: str) -> None:
        """Make one for `purpose` (a word); the file `.owner.json` in it says whose it is."""
        self.name = tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-")
        self._remove = weakref.finalize(self, _remove, self.name, os.getpid())
        Path(self.name, _OWNER).write_text(json.dumps(ownership.labels("scratch", "")))

    def __enter__(self) -> str:
        return self.name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()

    def cleanup(self) -> None:
        """Remove it."""
        self._remove()


def sweep() -> None:
    """Remove what is left of processes that have ended without a word; in doubt, it stays."""
    for each in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another process may sweep, too, or has not yet written whose it is.
        with contextlib.suppress(OSError, ValueError):
            if not why_unsafe(each) and ownership.is_dead(json.loads((each / _OWNER).read_text())):
                shutil.rmtree(each, ignore_errors=True)


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(path, ignore_errors=True)
