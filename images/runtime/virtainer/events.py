"""The supervisor's events on stderr: sentences for people, or with EVENTS=json one JSON object a line.

Standard output belongs to the guest's serial console.
"""

from __future__ import annotations

import json
import os
import select
import time

from virtainer.protocol import JSON, LONGEST_EVENT, Variable, sentence

_STALLED_SECONDS = 1.0


def report(event: str, /, **fields: object) -> None:
    """Write an event of `protocol.SENTENCES` as one line to stderr.

    A reader that stalls loses the event: it must not stall the supervisor. Whatever a field quotes, the line has no
    control characters, and no line of another thread gets into it.
    """
    fields = {"event": event, **fields}
    line = _json(fields) if os.environ.get(Variable.EVENTS) == JSON else sentence(fields).encode()[:LONGEST_EVENT]
    if select.select([], [2], [], _STALLED_SECONDS)[1]:
        os.write(2, line + b"\n")


def note(text: str) -> None:
    """Report something that only people read."""
    report("note", text=text)


def _json(event: dict[str, object]) -> bytes:
    """Return an event as JSON, with its longest texts cut until the line is short enough."""
    while len(line := json.dumps(event)) > LONGEST_EVENT:
        name, text = max(
            ((name, value) for name, value in event.items() if isinstance(value, str)), key=lambda each: len(each[1])
        )
        event = {**event, name: text[: len(text) // 2]}
    return line.encode()


class RateLimit:
    """Reports events that a guest can cause at any rate: some at once, then some each second.

    Args:
        what: the name of such events, for the one that says that some were suppressed.
        at_once: the number of events at first.
        a_second: the number of further events per second; 0: none.
    """

    def __init__(self, what: str, at_once: int, a_second: float) -> None:
        self._what, self._at_once, self._a_second = what, at_once, a_second
        self._left, self._since, self._suppresses = float(at_once), time.monotonic(), False

    def report(self, event: str, /, **fields: object) -> None:
        """Report an event, unless there were too many."""
        now = time.monotonic()
        self._left = min(self._at_once, self._left + (now - self._since) * self._a_second)
        self._since = now
        if self._left >= 1:
            self._left, self._suppresses = self._left - 1, False
            report(event, **fields)
        elif not self._suppresses:
            self._suppresses = True
            report("suppressed", what=self._what)
