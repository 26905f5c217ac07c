"""Suspend the time limit of a test while images and templates are created for later tests, too.

pytest-timeout (2.1 or newer) sets and cancels its timer by hooks, and the hooks here record which timer is set. To
suspend it, the same hooks cancel the timer and set it again, with any method. The limit then starts again.
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


# The current timer: its test, its settings of pytest-timeout, and the thread that set it.
_TIMER_KEY: pytest.StashKey[tuple[pytest.Item, Any, int] | None] = pytest.StashKey()


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Record the timer; pytest-timeout sets it."""
    item.config.stash[_TIMER_KEY] = item, settings, threading.get_ident()


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    """Record that no timer is set; pytest-timeout cancels it."""
    item.config.stash[_TIMER_KEY] = None


@contextlib.contextmanager
def suspended(config: pytest.Config, note: Callable[[str], object]) -> Iterator[None]:
    """Suspend the time limit of the running test for the block; `note` is called with a line if it took long.

    Threads other than the one that set the timer cannot suspend it, as only the main thread can set signals.
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
                f"the time limit of {item.nodeid}, {settings.timeout:g} s, starts again, as an image or template was "
                "created. To create them before the tests: pytest --virtainer-warm"
            )
