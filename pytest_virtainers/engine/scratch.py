"""Private temporary folders of this process; `sweep` removes those of processes that were killed."""

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
    """A folder of this process. `cleanup`, garbage collection or the end of the process removes it.

    A forked child does not remove it.

    Attributes:
        name: its path.
    """

    def __init__(self, purpose: str) -> None:
        """Create one for `purpose` (a word); its file `.owner.json` names the owner."""
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
    """Remove the folders of processes that were killed; in doubt, they stay."""
    for each in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another process may be sweeping too, or may not have written the owner yet.
        with contextlib.suppress(OSError, ValueError):
            if not why_unsafe(each) and ownership.is_dead(json.loads((each / _OWNER).read_text())):
                shutil.rmtree(each, ignore_errors=True)


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(path, ignore_errors=True)
