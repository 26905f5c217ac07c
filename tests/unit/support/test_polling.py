"""Polling with a deadline."""

import pytest

from pytest_virtainers import WaitTimeout
from pytest_virtainers.support import polling as module
from pytest_virtainers.support.polling import Deadline


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.001)


def test_poll_returns_the_first_result_other_than_none() -> None:
    answers = [None, None, "", "never returned"]
    assert Deadline("an answer", 60).poll(lambda: answers.pop(0)) == "", "only None continues the wait"
    assert answers == ["never returned"]


def test_timeout_names_subject_duration_and_last_observation() -> None:
    deadline = Deadline("port 80 of web", 0.01)
    numbers = iter(range(1000))

    def attempt() -> None:
        deadline.seen = f"try {next(numbers)}"

    with pytest.raises(WaitTimeout) as caught:
        deadline.poll(attempt)
    assert str(caught.value) == f"waited 0.01 s for port 80 of web; seen last: {deadline.seen}"
    assert caught.value.__context__ is None


def test_poll_tries_once_after_the_deadline() -> None:
    late = Deadline("x", 0)
    assert late.poll(lambda: 7) == 7
    assert late.remaining == 0.1
    with pytest.raises(WaitTimeout, match="waited 0 s for x; seen last: nothing"):
        late.poll(lambda: None)


def test_exceptions_of_an_attempt_end_the_wait() -> None:
    tries = []

    def attempt() -> None:
        tries.append(1)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        Deadline("x", 3600).poll(attempt)
    assert len(tries) == 1
