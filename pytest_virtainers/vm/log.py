"""The log of a machine's commands and transfers, for `commands.log`."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Entry:
    """One command or transfer; `outcome` is filled in when it ends.

    Attributes:
        what: the command or transfer, as one line.
        user: the user that ran it.
        began: this machine's time.
        seconds: its duration; `None` while it runs.
        outcome: `exit 0`, or how else it ended.
        out: the number of bytes on standard output.
        err: the number of bytes on standard error.
    """

    what: str
    user: str
    began: datetime
    seconds: float | None = None
    outcome: str = "still running"
    out: int = 0
    err: int = 0

    def __str__(self) -> str:
        took = "" if self.seconds is None else f"{self.seconds:.3f} s"
        sizes = f"out {self.out} B, err {self.err} B"
        began = self.began.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return f"{began} {took:>10}  {self.outcome:<10}  {sizes}  {self.user}$ {self.what}"


class CommandLog:
    """The commands and transfers of one machine, in the order in which they began."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._lock = threading.Lock()

    @contextmanager
    def entry(self, what: str, user: str) -> Iterator[Entry]:
        """Log what the block does; an exception is its outcome, unless the block sets another."""
        one = Entry(what.encode("unicode_escape").decode(), user, datetime.now(UTC))
        with self._lock:
            self.entries.append(one)
        started = monotonic()
        outcome = one.outcome
        try:
            yield one
        except BaseException as error:
            if one.outcome == outcome:
                one.outcome = type(error).__name__
            raise
        finally:
            one.seconds = monotonic() - started
            if one.outcome == outcome:
                one.outcome = "done"

    @property
    def text(self) -> str:
        """The log as text, one line for each entry."""
        with self._lock:
            return "".join(f"{each}\n" for each in self.entries)
