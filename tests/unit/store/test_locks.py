"""What processes need of the store, seen by each other."""

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


def test_what_another_process_needs_is_held_until_it_is_killed() -> None:
    command = [sys.executable, "-c", HOLDER, "templates/abc"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        assert is_locked("templates/abc")
        other.kill()
    assert not is_locked("templates/abc")


def test_what_this_process_needs_is_held_until_no_part_of_it_does() -> None:
    with SharedLocks() as one, SharedLocks() as another:
        for holds in (one, one, another):
            holds.add("templates/abc")
        one.close()
        assert is_locked("templates/abc")
        another.close()
        assert not is_locked("templates/abc")
    with SharedLocks() as one:
        one.add("templates/abc")
    assert not is_locked("templates/abc"), "leaving the block ends it, too"


def test_asking_holds_nothing() -> None:
    with SharedLocks() as holds:
        holds.add("guests/abc")
    assert not is_locked("guests/abc")
    assert not is_locked("guests/abc")


def test_threads_may_need_the_same_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_each_name_is_held_on_its_own() -> None:
    with SharedLocks() as holds:
        holds.add("templates/abc")
        assert not is_locked("templates/abd")
        assert not is_locked("guests/abc")
