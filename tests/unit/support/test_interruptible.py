"""Running calls that block, here until the test releases them."""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers.errors import VMGone
from pytest_virtainers.support import interruptible
from pytest_virtainers.support.interruptible import TimedOut, run_interruptible
from pytest_virtainers.support.timings import TOTAL, Record, phase, recording


class Blocked:
    """A call that returns "late" once it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __call__(self) -> str:
        self.released.wait()
        return "late"


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blocked]:
    monkeypatch.setattr(interruptible, "POLL_SECONDS", 0.001)
    blocked = Blocked()
    yield blocked
    blocked.released.set()


def pass_check() -> None:
    pass


def raise_ended() -> None:
    raise VMGone("it has ended")


def test_result_and_exceptions_are_passed_on() -> None:
    assert run_interruptible(lambda: 7, check=pass_check, deadline=None) == 7
    with pytest.raises(ZeroDivisionError):
        run_interruptible(lambda: 1 // 0, check=pass_check, deadline=None)
    with pytest.raises(SystemExit):
        run_interruptible(sys.exit, check=pass_check, deadline=None)


def test_a_failing_check_ends_the_wait(blocked: Blocked) -> None:
    with pytest.raises(VMGone):
        run_interruptible(blocked, check=raise_ended, deadline=None)


def test_a_deadline_ends_the_wait(blocked: Blocked) -> None:
    with pytest.raises(TimedOut):
        run_interruptible(blocked, check=pass_check, deadline=time.monotonic() + 0.01)


def test_late_results_are_passed_to_unwanted(blocked: Blocked) -> None:
    unwanted: queue.SimpleQueue[str] = queue.SimpleQueue()
    with pytest.raises(VMGone):
        run_interruptible(blocked, check=raise_ended, deadline=None, unwanted=unwanted.put)
    assert unwanted.empty()
    blocked.released.set()
    assert unwanted.get(timeout=60) == "late"


def test_a_result_at_the_end_of_the_wait_is_unwanted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    caller, threads = threading.current_thread(), list[threading.Thread]()
    result_is_there, caller_has_left = threading.Event(), threading.Event()

    def thread(**options: Any) -> threading.Thread:
        threads.append(threading.Thread(**options))
        return threads[0]

    class Lock:
        """A lock that stops the thread just after it stored its result."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()
            if threading.current_thread() is not caller:
                result_is_there.set()
                caller_has_left.wait(60)

    def check() -> None:
        if result_is_there.is_set():
            raise_ended()

    monkeypatch.setattr(interruptible, "threading", SimpleNamespace(Thread=thread, Lock=Lock))
    monkeypatch.setattr(interruptible, "POLL_SECONDS", 0.001)
    unwanted: list[int] = []
    with pytest.raises(VMGone):
        run_interruptible(lambda: 7, check=check, deadline=None, unwanted=unwanted.append)
    caller_has_left.set()
    threads[0].join(60)
    assert unwanted == [7]


def test_phases_of_the_call_are_recorded_for_its_caller() -> None:
    def call() -> None:
        with phase("inside"):
            pass

    record = Record("clone")
    with recording(record):
        run_interruptible(call, check=pass_check, deadline=None)
    assert list(record.seconds) == ["inside", TOTAL]
