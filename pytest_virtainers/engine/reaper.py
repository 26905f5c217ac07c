"""`python -m pytest_virtainers.engine.reaper URL RUN`: remove what a run owns after its process has died.

A container that was created and not started has no lease yet, and networks and volumes never have one. So each run
has a process that outlives it: a shell that waits for a word on a pipe, and executes Python only if the pipe is
closed without that word. It has its own session, so signals to the terminal's processes or to a process group do not
reach it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.support.forks import Owner, disown_in_child

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from pytest_virtainers.engine.base import Engine

_DONE = b"done\n"
_WAIT = 'read -r word; [ "$word" = done ] || exec "$@"'
_END_SECONDS = 5.0
# The engine may still be creating what the dead process has asked for.
_QUIET_SECONDS, _POLL_SECONDS = 10.0, 0.5


def import_path() -> str:
    """Return a `PYTHONPATH` with which a process in any folder imports this same package."""
    here = Path(__file__).parents[2]
    return os.pathsep.join(str(Path(each).absolute()) for each in (str(here), *sys.path))


class Watcher:
    """A process that runs a command when this process dies, unless `close` is called first.

    Where there is no shell, there is no watcher, and the next run sweeps what this one leaves.

    Attributes:
        process: the waiting process; `None` without a shell, and after `close`.
    """

    def __init__(self, command: Sequence[str], descriptors: Sequence[int] = ()) -> None:
        """Start it.

        Args:
            command: the program and its arguments.
            descriptors: file descriptors to pass on to it.
        """
        self._owner = Owner("the watcher of this run", "")
        self.process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", _WAIT, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                env={**os.environ, "PYTHONPATH": import_path()},
                start_new_session=True,
                pass_fds=descriptors,
            )
            disown_in_child(self)

    def disown(self) -> None:
        """Close a forked child's copy of the pipe, which would hide the parent's death."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.returncode = 0  # not the child's process

    def close(self) -> None:
        """End it without running the command; in a forked child this does nothing."""
        process, self.process = self.process, None
        if process is None or process.stdin is None or not self._owner.is_here:
            return
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(_DONE)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Reaper(Watcher):
    """Removes what a run owns on the engine as soon as this process has died without `close`."""

    def __init__(self, engine: Engine, run_id: str) -> None:
        # -P: import nothing from the current folder. There is no place for warnings.
        python = [sys.executable, "-P", "-W", "ignore", "-m", "pytest_virtainers.engine.reaper"]
        super().__init__([*python, engine.url, run_id], engine.lifelines)

    def __enter__(self) -> Reaper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> None:
    """Remove what the run owns, until nothing more has appeared for a while."""
    from pytest_virtainers.engine import scratch
    from pytest_virtainers.engine.detect import find

    url, run_id = sys.argv[1:]
    engine = find(url)
    end = time.monotonic() + _QUIET_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(VirtainerError):
            if engine.sweep(run_id):
                end = time.monotonic() + _QUIET_SECONDS
        time.sleep(_POLL_SECONDS)
    scratch.sweep()
    engine.close()


if __name__ == "__main__":
    main()
