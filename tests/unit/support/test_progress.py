import time

import pytest

from pytest_virtainers.support.progress import Progress, bar, fitted


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_short_steps_show_nothing(clock: list[float]) -> None:
    shown: list[str] = []
    with Progress(shown.append, live=True).step("booting") as step:
        clock[0] += 1.9
        step.update("detail")
    assert shown == []


def test_a_log_shows_one_line_at_the_end(clock: list[float]) -> None:
    shown: list[str] = []
    with Progress(shown.append, live=False).step("booting") as step:
        for _ in range(10):
            clock[0] += 1
            step.update("detail")
        assert shown == []
    assert shown == ["virtainers: booting: done in 10.0 s\n"]


def test_a_long_step_without_details_is_shown(clock: list[float]) -> None:
    shown: list[str] = []
    with Progress(shown.append, live=False).step("booting"):
        clock[0] += 2
    assert shown == ["virtainers: booting: done in 2.0 s\n"]


def test_a_log_shows_running_steps_after_a_minute(clock: list[float]) -> None:
    shown: list[str] = []
    with Progress(shown.append, live=False).step("booting") as step:
        for second in range(1, 151):
            clock[0] += 1
            step.update(f"line {second} " + "x" * 100)
        assert shown == [f"virtainers: booting (60 s) line 60 {'x' * 100}\n"]
    assert shown[1:] == ["virtainers: booting: done in 150.0 s\n"]


def test_a_terminal_shows_one_line_that_is_redrawn(clock: list[float]) -> None:
    shown: list[str] = []

    def boot() -> None:
        with Progress(shown.append, live=True).step("booting") as step:
            clock[0] += 3
            step.update("\x1b[31mlogin:\x07")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        boot()
    assert shown == [
        "\r\x1b[2Kvirtainers: booting (3 s) \\x1b[31mlogin:\\x07",
        "\r\x1b[2Kvirtainers: booting: failed in 3.0 s\n",
    ]


def test_redrawn_lines_fit_a_narrow_terminal(clock: list[float]) -> None:
    shown: list[str] = []
    with Progress(lambda text: shown.append(fitted(text, 30)), live=True).step("booting") as step:
        clock[0] += 3
        step.update("x" * 100)
    assert shown == ["\r\x1b[2Kvirtainers: booting (3 s) xxx", "\r\x1b[2Kvirtainers: booting: done in 3.0 s\n"]
    assert fitted(shown[0], 0) == shown[0]


@pytest.mark.parametrize(
    ("done_mib", "whole_mib", "drawn"),
    [
        (0, 300, f"[{'-' * 24}] 0 % of 300 MiB"),
        (100, 300, f"[{'#' * 8}{'-' * 16}] 33 % of 300 MiB"),
        (299.9, 300, f"[{'#' * 23}-] 99 % of 300 MiB"),
        (300, 300, f"[{'#' * 24}] 100 % of 300 MiB"),
        (400, 300, f"[{'#' * 24}] 100 % of 300 MiB"),
        (100, None, "100 MiB"),
    ],
)
def test_bar(done_mib: float, whole_mib: int | None, drawn: str) -> None:
    mib = 1024 * 1024
    assert bar(int(done_mib * mib), whole_mib and whole_mib * mib) == drawn


THREADS = """
    from concurrent.futures import ThreadPoolExecutor
    from pytest_virtainers.plugin import session
    from pytest_virtainers.support.progress import LAUNCHING

    def test_it(request):
        progress = session._progress(request.config)
        for name in (LAUNCHING, "of-the-test"):
            with ThreadPoolExecutor(1, name) as threads:
                threads.submit(progress.note, f"by {name}").result()
"""


def test_only_launching_threads_show_progress(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(THREADS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["virtainers: by virtainers-launch"])
    result.stdout.no_fnmatch_line("*of-the-test*")


def test_shown_text_is_escaped(clock: list[float]) -> None:
    shown: list[str] = []
    progress = Progress(shown.append, live=False)
    progress.note("a\x1b[2J\nb")
    with progress.step("a\x1b[2J\nb"):
        clock[0] += 3
    assert shown == ["virtainers: a\\x1b[2J\nb\n", "virtainers: a\\x1b[2J\\nb: done in 3.0 s\n"]
