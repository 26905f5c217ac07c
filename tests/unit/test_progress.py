import time

import pytest

from pytest_virtainers.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_what_is_short_stays_silent(clock: list[float]) -> None:
    shown: list[str] = []
    with Progress(shown.append, live=True).step("booting") as step:
        clock[0] += 1.9
        step.update("detail")
    assert shown == []


def test_logs_get_one_line_when_it_proves_long_and_one_at_the_end(clock: list[float]) -> None:
    shown: list[str] = []
    with Progress(shown.append, live=False).step("booting") as step:
        for _ in range(10):
            clock[0] += 1
            step.update("detail")
    assert shown == ["virtainers: booting …\n", "virtainers: booting: done in 10.0 s\n"]


def test_a_terminal_gets_one_line_that_changes(clock: list[float]) -> None:
    shown: list[str] = []

    def boot() -> None:
        with Progress(shown.append, live=True).step("booting") as step:
            clock[0] += 3
            step.update("\x1b[31mlogin:\x07")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        boot()
    assert shown == [
        "\r\x1b[2Kvirtainers: booting (3 s) [31mlogin:",
        "\r\x1b[2Kvirtainers: booting: failed in 3.0 s\n",
    ]
