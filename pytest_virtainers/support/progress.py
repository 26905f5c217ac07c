"""Show the progress of long steps.

A step that ends within two seconds shows nothing. On a terminal, a longer step is one line that is redrawn. Elsewhere
(CI logs) it is one line at its end, and one more after a minute, so that a log shows what a stuck run waits for.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_virtainers.terminal import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAUNCHING = "virtainers-launch"
"""The prefix of the names of threads for which the main thread waits: they may show progress, too."""

_QUIET_SECONDS = 2.0
_REDRAW_SECONDS = 0.25
_INTERIM_SECONDS = 60.0
_MAX_WIDTH = 100
_BAR = 24
_MIB = 1024 * 1024
_ERASE = "\r\x1b[2K"


class Step:
    """A step that is running; `update` can be called at any rate."""

    def __init__(self, title: str, write: Callable[[str], None], *, live: bool) -> None:
        self._title = one_line(title)
        self._write = write
        self._live = live
        self._began = time.monotonic()
        self._due = self._began + (_QUIET_SECONDS if live else _INTERIM_SECONDS)

    def update(self, detail: str = "") -> None:
        """Show `detail` after the title and the elapsed seconds, if it is time to redraw."""
        now = time.monotonic()
        if now < self._due:
            return
        line = f"virtainers: {self._title} ({now - self._began:.0f} s) {one_line(detail.strip())}".rstrip()
        self._write(f"{_ERASE}{line[:_MAX_WIDTH]}" if self._live else f"{line}\n")
        self._due = now + _REDRAW_SECONDS if self._live else math.inf

    def end(self, outcome: str) -> None:
        """Show the outcome of a step that took long."""
        seconds = time.monotonic() - self._began
        if seconds >= _QUIET_SECONDS:
            erase = _ERASE if self._live else ""
            self._write(f"{erase}virtainers: {self._title}: {outcome} in {seconds:.1f} s\n")


class Progress:
    """Show steps: `write` puts text on the terminal, and with `live` lines are redrawn."""

    def __init__(self, write: Callable[[str], None], *, live: bool) -> None:
        self._write = write
        self._live = live

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show the block as one step."""
        step = Step(title, self._write, live=self._live)
        try:
            yield step
        except BaseException:
            step.end("failed")
            raise
        step.end("done")

    def note(self, line: str) -> None:
        """Show a line immediately."""
        self._write(f"virtainers: {printable(line)}\n")


SILENT = Progress(lambda _text: None, live=False)


def bar(done: int, whole: int | None) -> str:
    """Return a progress bar as a detail of a step; `done` and `whole` are bytes, `None` means unknown."""
    if not whole:
        return f"{done // _MIB} MiB"
    share = min(done / whole, 1.0)
    drawn = "#" * int(share * _BAR)
    return f"[{drawn:-<{_BAR}}] {int(share * 100)} % of {whole / _MIB:.0f} MiB"


def fitted(text: str, columns: int) -> str:
    """Shorten a line that will be redrawn to the width of the terminal; 0 columns means an unknown width.

    One column stays free: some terminals start a new line after the last column.
    """
    redrawn = text.startswith(_ERASE) and not text.endswith("\n")
    return text[: len(_ERASE) + columns - 1] if redrawn and columns else text
