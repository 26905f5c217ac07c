"""What a run makes once for all its VMs: outside the time limit of the first test, and not again if it failed.

Processes of one run (workers of pytest-xdist) find each other's failures in the folder of the locks. A file there
belongs to the run whose id it contains; a later run replaces it.
"""

from __future__ import annotations

import contextlib
import json
import os
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from pytest_virtainers.errors import BudgetError, EngineError, GuestStalled, QEMUCrashed, SpecError, TemplateError
from pytest_virtainers.support.paths import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

# Not failures of the template: the engine, memory, a wrong argument, an interrupted launch.
_OF_OTHERS = (BudgetError, EngineError, SpecError, CancelledError)
# Seen under emulation, once in some hundred boots: they count if they happen again.
_RARE = (GuestStalled, QEMUCrashed)
_AHEAD = "To make templates ahead of the tests, without their time limits: pytest --virtainer-warm"


class Once:
    """Makes things once in a run, and remembers failures.

    Args:
        run_id: id that the processes of a test run share; empty: there is only this one.
        without_time_limit: returns a context in which the time limit of a test does not run.
    """

    def __init__(
        self,
        run_id: str = "",
        without_time_limit: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._run_id = run_id
        self._failures: dict[str, str] = {}
        self._rare: set[str] = set()
        self.without_time_limit = without_time_limit

    def check(self, key: str, who: str) -> None:
        """Raise `TemplateError` for the VM `who` if its template `key` could not be made in this run."""
        __tracebackhide__ = True
        failure = self._failures.get(key) or self._failure_elsewhere(key)
        if failure:
            raise TemplateError(
                f"{who}: its template could not be made in this run, and is not tried again. "
                f"The first failure: {failure}"
            )

    @contextlib.contextmanager
    def making(self, key: str, who: str) -> Iterator[None]:
        """Make the template `key` for the VM `who` inside the block; remember a failure.

        Not remembered: interrupts, time limits and skips (`BaseException` in pytest), and what is not the template's
        fault. A kernel that hangs or a QEMU that crashes counts if it happens again.

        Raises:
            TemplateError: it failed before.
        """
        __tracebackhide__ = True
        self.check(key, who)
        try:
            yield
        except _OF_OTHERS:
            raise
        except Exception as error:
            if not isinstance(error, _RARE) or key in self._rare:
                self._remember(key, f"{type(error).__name__}: {error}")
            self._rare.add(key)
            raise
        except BaseException as error:
            error.add_note(f"A template was being made. {_AHEAD}")
            raise

    def _remember(self, key: str, failure: str) -> None:
        self._failures[key] = failure
        if not self._run_id:
            return
        with contextlib.suppress(OSError):  # then each process reports its own failure
            path = _path(key)
            new = path.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({"run": self._run_id, "failure": failure}))
            new.replace(path)

    def _failure_elsewhere(self, key: str) -> str:
        if not self._run_id:
            return ""
        try:
            found = json.loads(_path(key).read_text())
            return str(found["failure"]) if found["run"] == self._run_id else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def _path(key: str) -> Path:
    return cache_folder() / f"template-{key}.failure"
