"""What the supervisor says: one line each, however foreign its words, and not too many."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest
from virtainer import clone_agent, exit_reasons
from virtainer.exit_reasons import Sparing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capfd.readouterr().err.split("\n")[:-1]


def test_a_line_is_one_line_without_controls(said: Callable[[], list[str]]) -> None:
    exit_reasons.say("a\nvirtainer: over: x\r\x1b[2J\x9b1m\u2028\u202e\udc80 grüße 日本")
    assert said() == ["virtainer: a\\nvirtainer: over: x\\r\\x1b[2J\\x9b1m\\u2028\\u202e\\udc80 grüße 日本"]


def test_a_long_line_is_cut_so_that_a_pipe_takes_it_whole(said: Callable[[], list[str]]) -> None:
    exit_reasons.say("x" * 100_000)
    (line,) = said()
    assert 3900 < len(line) < 4096


def test_too_many_lines_are_counted_out(said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    events = Sparing("guest", at_once=3, a_second=1)
    for _ in range(1000):
        events.say("guest panicked")
    hidden = "virtainer: guest: too many lines, further ones are not shown"
    assert said() == [*["virtainer: guest panicked"] * 3, hidden]
    now[0] += 1.5
    for _ in range(1000):
        events.say("guest panicked")
    assert said() == ["virtainer: guest panicked", hidden], "and later there may be more"
    now[0] += 1000
    for _ in range(1000):
        events.say("guest panicked")
    assert len(said()) == 4


def test_a_guest_that_talks_nonsense_to_its_supervisor_is_soon_not_heard(
    said: Callable[[], list[str]], tmp_path: Path
) -> None:
    ours, theirs = socket.socketpair()
    waits = tmp_path / "waits"
    clone_agent.CloneAgent(ours, "db", waits)
    for number in range(5000):
        theirs.sendall(b"virtainer: over: %d\n" % number)
    theirs.sendall(clone_agent.READY)
    deadline = time.monotonic() + 10
    while not waits.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    lines = said()
    assert len(lines) == 22
    assert all(line.startswith("virtainer: helper: something unexpected: b'virtainer: over: ") for line in lines[:20])
    assert lines[20:] == [
        "virtainer: helper: something unexpected: too many lines, further ones are not shown",
        "virtainer: helper: ready",
    ]
    theirs.close()
    ours.close()


def test_a_guest_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    helper = clone_agent.CloneAgent(ours, "db", tmp_path / "waits")
    began = time.monotonic()
    for _ in range(10_000):
        helper.after_restore(clone=True)
    assert time.monotonic() - began < 5
    theirs.close()
    ours.close()
