"""Tell the person at the terminal what takes long.

A step that ends within two seconds stays silent. On a terminal a longer one is one line that changes; elsewhere
(CI logs) it is one line at its end, and one more if it is under way after a minute: a log that hangs says for what.
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
"""What the names of threads begin with for which the main thread waits: they may show something, too."""

_QUIET_SECONDS = 2.0
_REDRAW_SECONDS = 0.25
_INTERIM_SECONDS = 60.0
_WIDTH = 100  # at most
_BAR = 24
_MIB = 1024 * 1024
_ERASE = "\r\x1b[2K"


class Step:
    """One thing under way; call `update` with the newest detail as often as you like."""

    def __init__(self, title: str, write: Callable[[str], None], *, live: bool) -> None:
        self._title = one_line(title)
        self._write = write
        self._live = live
        self._began = time.monotonic()
        self._due = self._began + (_QUIET_SECONDS if live else _INTERIM_SECONDS)

    def update(self, detail: str = "") -> None:
        """Show `detail` beside the title and the seconds that have passed, if it is time to."""
        now = time.monotonic()
        if now < self._due:
            return
        line = f"virtainers: {self._title} ({now - self._began:.0f} s) {one_line(detail.strip())}".rstrip()
        self._write(f"{_ERASE}{line[:_WIDTH]}" if self._live else f"{line}\n")
        self._due = now + _REDRAW_SECONDS if self._live else math.inf

    def end(self, outcome: str) -> None:
        """Leave one line behind, if the step was long."""
        seconds = time.monotonic() - self._began
        if seconds >= _QUIET_SECONDS:
            erase = _ERASE if self._live else ""
            self._write(f"{erase}virtainers: {self._title}: {outcome} in {seconds:.1f} s\n")


class Progress:
    """Where steps are shown: `write` puts text on the terminal, `live` says that lines may be redrawn."""

    def __init__(self, write: Callable[[str], None], *, live: bool) -> None:
        self._write = write
        self._live = live

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show what happens inside the block as one step."""
        step = Step(title, self._write, live=self._live)
        try:
            yield step
        except BaseException:
            step.end("failed")
            raise
        step.end("done")

    def note(self, line: str) -> None:
        """Show one line at once."""
        self._write(f"virtainers: {printable(line)}\n")


SILENT = Progress(lambda _text: None, live=False)


def bar(done: int, whole: int | None) -> str:
    """Draw how many bytes of how many are done, as a detail of a step; None: nobody knows how many there are."""
    if not whole:
        return f"{done // _MIB} MiB"
    share = min(done / whole, 1.0)
    drawn = "#" * int(share * _BAR)
    return f"[{drawn:-<{_BAR}}] {int(share * 100)} % of {whole / _MIB:.0f} MiB"


def fitted(text: str, columns: int) -> str:
    """Cut a line that is to be redrawn, for a terminal on which it would take several; 0 columns: that is not known.

    One column stays free: some terminals begin a new line with the last one.
    """
    redrawn = text.startswith(_ERASE) and not text.endswith("\n")
    return text[: len(_ERASE) + columns - 1] if redrawn and columns else text
