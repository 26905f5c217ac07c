"""Keepalive: check that a guest still answers while a command is silent, as a hanging kernel closes no connection."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_virtainers.ssh.client import Connection

_ANSWER_SECONDS = 3600.0


class Keepalive:
    """Sends keepalive requests over one SSH connection.

    Args:
        connection: the SSH connection.
        every: seconds between an answer and the next request.
        first: seconds until the first request.
    """

    def __init__(self, connection: Connection, every: float, first: float) -> None:
        self._connection, self._every = connection, every
        self._lock = threading.Lock()
        self._answered = time.monotonic() - every + first
        self._asked: float | None = None

    def silence(self) -> float:
        """Return for how many seconds a request is unanswered; send one when it is due."""
        with self._lock:
            now = time.monotonic()
            if self._asked is None and now - self._answered > self._every:
                self._asked = now
                threading.Thread(target=self._ask, daemon=True).start()
            return 0.0 if self._asked is None else now - self._asked

    def _ask(self) -> None:
        if self._connection.answers(_ANSWER_SECONDS):
            with self._lock:
                self._answered, self._asked = time.monotonic(), None
