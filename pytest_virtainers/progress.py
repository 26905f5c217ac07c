"""Tell the person at the terminal what takes long.

A step shows itself only after two seconds. On a terminal it is one line that changes; elsewhere (CI logs) it is
one line when it proves long and one when it ends.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_QUIET_SECONDS = 2.0
_REDRAW_SECONDS = 0.25
_WIDTH = 100


class Step:
    """One thing under way; call `update` with the newest detail as often as you like."""

    def __init__(self, title: str, write: Callable[[str], None], *, live: bool) -> None:
        self._title = title
        self._write = write
        self._live = live
        self._began = time.monotonic()
        self._drawn = 0.0

    def update(self, detail: str = "") -> None:
        """Show `detail` beside the title and the seconds that have passed."""
        now = time.monotonic()
        if now - self._began < _QUIET_SECONDS:
            return
        if self._live and now - self._drawn >= _REDRAW_SECONDS:
            line = f"virtainers: {self._title} ({now - self._began:.0f} s) {_printable(detail)}"
            self._write(f"\r\x1b[2K{line[:_WIDTH]}")
        elif not self._live and not self._drawn:
            self._write(f"virtainers: {self._title} …\n")
        else:
            return
        self._drawn = now

    def end(self, outcome: str) -> None:
        """Leave one line behind, if the step was long enough to be shown."""
        if self._drawn:
            erase = "\r\x1b[2K" if self._live else ""
            self._write(f"{erase}virtainers: {self._title}: {outcome} in {time.monotonic() - self._began:.1f} s\n")


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
        self._write(f"virtainers: {line}\n")


SILENT = Progress(lambda _text: None, live=False)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text).strip()
