"""The background check: each content is read once, damage is found, and the check ends with its process."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from virtainer import digests

from pytest_virtainers.errors import EngineError, VirtainerError
from pytest_virtainers.launching import integrity
from pytest_virtainers.launching.integrity import Checked, Watch

GOOD = {"file": "disk.qcow2", "sha256": "aa", "was": "aa", "error": ""}
DAMAGED = {**GOOD, "sha256": "bb"}


class Helper:
    """A container with the store; `answers` has the rows for each place."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self.answers = answers
        self.read: list[str] = []
        self.open = self.opened = 0
        self.code = 0
        self.stands_still = False

    @contextmanager
    def store(self) -> Iterator[Any]:
        self.open += 1
        self.opened += 1
        try:
            yield SimpleNamespace(container=self)
        finally:
            self.open -= 1

    def run(self, command: list[str], on_output: Callable[[bytes], object]) -> tuple[int, bytes]:
        *words, folder = command
        assert words[0] == "verify"
        self.read.append(folder)
        while self.stands_still:
            on_output(b"\n")
            time.sleep(0.01)
        row = self.answers[folder.rpartition("/")[2]]
        return self.code, b"\n\n" + json.dumps({"folder": folder, **row}).encode() + b"\n"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_DELAY_SECONDS", 0.0)


def settled(watch: Watch) -> list[Checked]:
    """Wait until nothing is left to read, and return what was found."""
    wait_for_threads()
    return watch.damage()


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == integrity.THREAD:
            thread.join(60)


def test_each_content_is_read_once_and_damage_is_reported_once() -> None:
    helper = Helper(a=GOOD, b=DAMAGED)
    watch = Watch(helper.store)
    for place, identity in (("guests/a", "1"), ("templates/b", "1"), ("guests/a", "1")):
        watch.want(place, identity)
    (found,) = settled(watch)
    assert str(found) == "templates/b: disk.qcow2 is damaged: its SHA-256 is bb, and was aa"
    assert watch.damage() == []
    assert helper.read == ["/store/guests/a", "/store/templates/b"]
    watch.want("guests/a", "1")
    watch.want("templates/b", "2")  # was made again
    assert len(settled(watch)) == 1
    assert helper.read[2:] == ["/store/templates/b"]
    assert helper.open == 0
    watch.close()


def test_a_file_removed_by_another_process_is_not_damaged() -> None:
    helper = Helper(
        a={**GOOD, "sha256": None, "error": integrity.MISSING}, b={**GOOD, "sha256": None, "error": "I/O"}
    )
    watch = Watch(helper.store)
    watch.want("guests/a", "")
    watch.want("guests/b", "")
    assert [str(each) for each in settled(watch)] == ["guests/b: disk.qcow2: I/O"]
    assert digests.MISSING == integrity.MISSING


def test_close_does_not_wait_for_a_check() -> None:
    helper = Helper(a=GOOD)
    helper.stands_still = True
    watch = Watch(helper.store)
    watch.want("guests/a", "")
    while not helper.read:
        time.sleep(0.01)
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < integrity.END_SECONDS
    assert helper.open == 0
    watch.want("guests/b", "")
    assert threading.active_count() == 1 or helper.read == ["/store/guests/a"]


def test_a_process_that_ends_at_once_starts_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_DELAY_SECONDS", 60.0)
    helper = Helper(a=GOOD)
    watch = Watch(helper.store)
    watch.want("guests/a", "")
    watch.close()
    assert helper.opened == 0


def test_engine_errors_are_ignored() -> None:
    def store() -> Any:
        raise EngineError("the engine has ended")

    watch = Watch(store)
    watch.want("guests/a", "")
    wait_for_threads()
    assert watch.damage() == []
    watch.close()


def test_a_helper_that_fails_is_an_error() -> None:
    helper: Any = Helper(a=GOOD)
    assert [str(each) for each in integrity.read(helper, ["guests/a"])] == ["guests/a: disk.qcow2: unchanged"]
    helper.answers["a"] = {**GOOD, "was": None}
    assert [str(each) for each in integrity.read(helper, ["guests/a"])] == [
        "guests/a: disk.qcow2: no digest was taken of it"
    ]
    helper.code = 137
    with pytest.raises(VirtainerError, match=r"^reading guests/a failed \(exit code 137\)"):
        list(integrity.read(helper, ["guests/a"]))
