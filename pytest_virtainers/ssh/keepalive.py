"""Does a guest still answer, while a command says nothing? A kernel that hangs closes no connection."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_virtainers.ssh.client import Connection

_PATIENCE_SECONDS = 3600.0


class Pulse:
    """Asks one SSH connection now and then.

    Args:
        connection: to ask.
        every: seconds between an answer and the next question.
        first: seconds until the first question.
    """

    def __init__(self, connection: Connection, every: float, first: float) -> None:
        self._connection, self._every = connection, every
        self._lock = threading.Lock()
        self._answered = time.monotonic() - every + first
        self._asked: float | None = None

    def silence(self) -> float:
        """Give the seconds for which a question is unanswered; ask one when it is time."""
        with self._lock:
            now = time.monotonic()
            if self._asked is None and now - self._answered > self._every:
                self._asked = now
                threading.Thread(target=self._ask, daemon=True).start()
            return 0.0 if self._asked is None else now - self._asked

    def _ask(self) -> None:
        if self._connection.answers(_PATIENCE_SECONDS):
            with self._lock:
                self._answered, self._asked = time.monotonic(), None
