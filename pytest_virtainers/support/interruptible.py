"""Run a blocking call with a deadline and a liveness check."""

from __future__ import annotations

import threading
import time
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
POLL_SECONDS = 0.25


class TimedOut(Exception):
    """The call did not return in time."""


def run_interruptible(
    call: Callable[[], T],
    *,
    check: Callable[[], None],
    deadline: float | None,
    unwanted: Callable[[T], object] = lambda _result: None,
) -> T:
    """Run `call` in a thread and return its result, or raise its exception.

    Args:
        call: a function that may block.
        check: called four times a second; raises to end the wait.
        deadline: on `time.monotonic()`; `None` waits forever.
        unwanted: called with a result that arrives after the wait has ended.

    Raises:
        TimedOut: the deadline has passed.
    """
    __tracebackhide__ = True
    outcome: list[T] = []
    failure: list[BaseException] = []
    lock, abandoned = threading.Lock(), False

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  (raised again in the calling thread)
            failure.append(error)
            return
        with lock:
            outcome.append(result)
            late = abandoned
        if late:
            unwanted(result)

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        _join(thread, check, deadline)
    except BaseException:
        with lock:
            abandoned = True
            late_results = list(outcome)
        for result in late_results:
            unwanted(result)
        raise
    if failure:
        raise failure[0]
    return outcome[0]


def _join(thread: threading.Thread, check: Callable[[], None], deadline: float | None) -> None:
    __tracebackhide__ = True
    while True:
        thread.join(POLL_SECONDS)
        if not thread.is_alive():
            return
        check()
        if deadline is not None and time.monotonic() > deadline:
            raise TimedOut
