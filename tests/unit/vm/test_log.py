"""The lines of `commands.log`."""

import re
import threading

import pytest

from pytest_virtainers.vm.log import CommandLog

LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z +\d+\.\d{3} s  exit 4      out 5 B, err 0 B  debian\$ false\n"


def test_a_line_has_time_duration_outcome_and_user() -> None:
    log = CommandLog()
    with log.entry("false", "debian") as entry:
        entry.out, entry.outcome = 5, "exit 4"
    assert re.fullmatch(LINE, log.text)


def test_running_commands_are_listed() -> None:
    log = CommandLog()
    with log.entry("sleep 60", "root"):
        assert "Z             still running  out 0 B" in log.text
    assert "  done " in log.text


def test_an_exception_is_the_outcome_unless_one_was_set() -> None:
    log = CommandLog()

    def fail(word: str) -> None:
        with log.entry("a", "root") as entry:
            entry.outcome = word or entry.outcome
            raise ConnectionError

    for word in ("", "timeout"):
        with pytest.raises(ConnectionError):
            fail(word)
    assert [each.outcome for each in log.entries] == ["ConnectionError", "timeout"]


def test_an_entry_is_one_line_whatever_the_command() -> None:
    log = CommandLog()
    with log.entry("printf 'a\nb'\r\x1b[2J \udcff", "root"):
        pass
    (line,) = log.text.splitlines()
    assert line.endswith(r"root$ printf 'a\nb'\r\x1b[2J \udcff")


def test_entries_are_in_the_order_in_which_they_began() -> None:
    log = CommandLog()
    began, may_end = threading.Event(), threading.Event()

    def long() -> None:
        with log.entry("first", "root"):
            began.set()
            may_end.wait(60)

    thread = threading.Thread(target=long)
    thread.start()
    began.wait(60)
    with log.entry("second", "root"):
        may_end.set()
        thread.join()
    assert [line.rpartition("$ ")[2] for line in log.text.splitlines()] == ["first", "second"]
