"""Shared locks, as other processes see them."""

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_virtainers.store.locks import SharedLocks, is_locked

HOLDER = """
import sys
from pytest_virtainers.store.locks import SharedLocks

holds = SharedLocks()
holds.add(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_lock_of_another_process_ends_when_it_is_killed() -> None:
    command = [sys.executable, "-c", HOLDER, "templates/abc"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        assert is_locked("templates/abc")
        other.kill()
    assert not is_locked("templates/abc")


def test_a_name_is_locked_until_its_last_lock_is_released() -> None:
    with SharedLocks() as one, SharedLocks() as another:
        for holds in (one, one, another):
            holds.add("templates/abc")
        one.close()
        assert is_locked("templates/abc")
        another.close()
        assert not is_locked("templates/abc")
    with SharedLocks() as one:
        one.add("templates/abc")
    assert not is_locked("templates/abc"), "leaving the block also releases it"


def test_is_locked_acquires_no_lock() -> None:
    with SharedLocks() as holds:
        holds.add("guests/abc")
    assert not is_locked("guests/abc")
    assert not is_locked("guests/abc")


def test_threads_can_lock_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock

    def slowly(file: int, operation: int) -> None:
        time.sleep(0.05)
        lock(file, operation)

    holds = SharedLocks()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", slowly)
        threads = [threading.Thread(target=holds.add, args=["templates/abc"]) for _ in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert is_locked("templates/abc")
    holds.close()
    assert not is_locked("templates/abc"), "it was opened once"


def test_names_are_locked_independently() -> None:
    with SharedLocks() as holds:
        holds.add("templates/abc")
        assert not is_locked("templates/abd")
        assert not is_locked("guests/abc")
