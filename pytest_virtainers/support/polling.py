"""Poll until a deadline; the error names what was waited for and what was seen last."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from pytest_virtainers.errors import WaitTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
NOTHING = "nothing"
_PAUSE_SECONDS = 0.25


class Deadline:
    """The deadline of one wait.

    Args:
        what: the thing waited for, in the message: `port 80 of web`.
        seconds: time from now.

    Attributes:
        seen: what the last attempt has seen; set by the attempts.
    """

    def __init__(self, what: str, seconds: float) -> None:
        self._what, self._seconds = what, seconds
        self._end = time.monotonic() + seconds
        self.seen = NOTHING

    @property
    def remaining(self) -> float:
        """The remaining seconds, at least 0.1."""
        return max(0.1, self._end - time.monotonic())

    def poll(self, attempt: Callable[[], T | None]) -> T:
        """Call `attempt` until it returns something other than `None`, and return that; its exceptions end the wait.

        Raises:
            WaitTimeout: the deadline has passed.
        """
        __tracebackhide__ = True
        while True:
            found = attempt()
            if found is not None:
                return found
            if time.monotonic() >= self._end:
                raise WaitTimeout(f"waited {self._seconds:g} s for {self._what}; seen last: {self.seen}")
            time.sleep(_PAUSE_SECONDS)
