"""Wait for a blocking call without being at its mercy."""

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
    """What was waited for did not end in time."""


def patiently(
    call: Callable[[], T],
    *,
    check: Callable[[], None],
    deadline: float | None,
    unwanted: Callable[[T], object] = lambda _result: None,
) -> T:
    """Run `call` in a thread and give its result; what it raises is raised.

    Args:
        call: may block for as long as it likes.
        check: called four times a second; raises when there is no point in waiting on.
        deadline: on `time.monotonic()`; None: no limit.
        unwanted: is given a result that comes when nobody waits any more.

    Raises:
        TimedOut: the deadline passed.
    """
    __tracebackhide__ = True
    outcome: list[T] = []
    failure: list[BaseException] = []
    lock, left = threading.Lock(), False

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  (it is raised where it was asked for)
            failure.append(error)
            return
        with lock:
            outcome.append(result)
            late = left
        if late:
            unwanted(result)

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        _join(thread, check, deadline)
    except BaseException:
        with lock:
            left = True
            in_vain = list(outcome)
        for result in in_vain:
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
