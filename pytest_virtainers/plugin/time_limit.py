"""Suspend the time limit of a test while something is made that later tests need, too.

pytest-timeout (2.1 or newer) sets and cancels its timer by hooks, and the hooks here note which is set. To suspend
it, it is cancelled by the same hooks and set again, whatever its method. The limit then starts again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_QUIET_SECONDS = 2.0


# The timer that runs: for which test, with which settings of pytest-timeout, set by which thread.
_TIMER_KEY: pytest.StashKey[tuple[pytest.Item, Any, int] | None] = pytest.StashKey()


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Note the timer; pytest-timeout sets it."""
    item.config.stash[_TIMER_KEY] = item, settings, threading.get_ident()


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    """Note that no timer runs; pytest-timeout cancels it."""
    item.config.stash[_TIMER_KEY] = None


@contextlib.contextmanager
def suspended(config: pytest.Config, note: Callable[[str], object]) -> Iterator[None]:
    """Suspend the time limit of the running test for the block; `note` is given a line when that was long.

    A thread other than the one that set it cannot: signals are set by the main thread only.
    """
    timer = config.stash.get(_TIMER_KEY, None)
    if timer is None or timer[-1] != threading.get_ident():
        yield
        return
    item, settings, _ = timer
    config.hook.pytest_timeout_cancel_timer(item=item)
    began = time.monotonic()
    try:
        yield
    finally:
        config.hook.pytest_timeout_set_timer(item=item, settings=settings)
        if time.monotonic() - began > _QUIET_SECONDS:
            note(
                f"the time limit of {item.nodeid}, {settings.timeout:g} s, starts again: what was made "
                "now is made once. To make it ahead of the tests: pytest --virtainer-warm"
            )
