"""Events on stderr: one line each, whatever they quote, and a limited number; as sentences or as JSON."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest
from virtainer import clone_agent, events, protocol
from virtainer.events import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVENTS: dict[str, tuple[dict[str, object], str]] = {
    "started": (
        {
            "name": "web",
            "ram_mib": 512,
            "cpus": 2,
            "accel": "tcg",
            "disk": "/image",
            "format": "qcow2",
            "prepared_s": 0.0512,
        },
        "starting web: 512 MiB, 2 CPU, tcg, /image (qcow2), prepared in 0.05 s",
    ),
    "restored": (
        {"prepared_s": 0.0312, "qemu_s": 0.042, "state_s": 0.013},
        "clone restored: prepared in 0.031 s, QEMU up in 0.042 s, state in 0.013 s",
    ),
    "helper-ready": ({}, "helper: ready"),
    "helper-done": ({"hostname": "web", "clock_ms": -1.25}, "helper: done, hostname web, clock -1.2 ms"),
    "helper-unexpected": ({"line": "what?\x1b"}, r"helper: unexpected: what?\x1b"),
    "guest-off": ({}, "guest switched itself off"),
    "guest-on": ({}, "guest runs again"),
    "guest-panicked": ({}, "guest panicked"),
    "guest-rebooted": ({}, "guest rebooted"),
    "disk-failed": (
        {"cause": "no space left in IMAGE_DIR"},
        "guest paused, its disk failed: no space left in IMAGE_DIR. Fix that, then resume the guest: "
        """docker exec CONTAINER qmp '{"execute": "cont"}'""",
    ),
    "boot-crashed": (
        {"detail": "QEMU ended by itself (SIGABRT): Assertion `x' failed"},
        "QEMU crashed while the guest booted, starting it again, once: "
        "QEMU ended by itself (SIGABRT): Assertion `x' failed",
    ),
    "dns-ended": (
        {"code": -9, "log": "/run/virtainer/dnsmasq.log"},
        "dnsmasq ended with exit code -9 (see /run/virtainer/dnsmasq.log): the guest has no DHCP and no DNS",
    ),
    "stopping": ({"signal": "SIGTERM", "grace_s": 60.0}, "SIGTERM: asking the guest to shut down within 60 s"),
    "qemu": ({"line": "no memory"}, "qemu: no memory"),
    "suppressed": ({"what": "guest"}, "guest: too many lines, further ones are not shown"),
    "note": ({"text": "seed: ready ISO"}, "seed: ready ISO"),
    "over": ({"detail": "the guest switched itself off"}, "over: the guest switched itself off"),
    "end": (
        {"reason": "bad-image", "detail": "no guest disk", "crashed": False},
        "end: bad-image: no guest disk",
    ),
}


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capfd.readouterr().err.split("\n")[:-1]


@pytest.fixture
def in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(protocol.Variable.EVENTS, protocol.JSON)


@pytest.mark.parametrize("name", protocol.SENTENCES)
def test_each_event_has_a_sentence(name: str, said: Callable[[], list[str]]) -> None:
    fields, sentence = EVENTS[name]
    events.report(name, **fields)
    assert said() == [f"virtainer: {sentence}"]


@pytest.mark.parametrize("name", protocol.SENTENCES)
def test_each_event_is_an_object_where_a_program_reads(
    name: str, said: Callable[[], list[str]], in_json: None
) -> None:
    events.report(name, **EVENTS[name][0])
    (line,) = said()
    assert json.loads(line) == {"event": name, **EVENTS[name][0]}
    assert protocol.sentence(json.loads(line)) == f"virtainer: {EVENTS[name][1]}"


def test_a_line_is_one_line_without_controls(said: Callable[[], list[str]]) -> None:
    events.note("a\nvirtainer: over: x\r\x1b[2J\x9b1m\u2028\u202e\udc80 grüße 日本")
    assert said() == ["virtainer: a\\nvirtainer: over: x\\r\\x1b[2J\\x9b1m\\u2028\\u202e\\udc80 grüße 日本"]


def test_an_object_is_one_line_without_controls(said: Callable[[], list[str]], in_json: None) -> None:
    text = 'a\n{"event": "guest-off"}\r\x1b[2J\x9b1m\u2028\u202e\udc80 grüße 日本'
    events.note(text)
    (line,) = said()
    assert line.isprintable()
    assert json.loads(line) == {"event": "note", "text": text}


def test_a_long_line_is_cut_to_the_size_of_a_pipe_write(said: Callable[[], list[str]]) -> None:
    events.note("x" * 100_000)
    (line,) = said()
    assert 3900 < len(line) < 4096


@pytest.mark.parametrize("letter", ["x", '"', "ü", "\udc80", "\U0001f600", "\x00"])
def test_a_long_object_is_cut_and_stays_valid(letter: str, said: Callable[[], list[str]], in_json: None) -> None:
    events.report("end", reason="qemu-failed", detail=letter * 100_000, crashed=True)
    (line,) = said()
    event = json.loads(line)
    assert 1500 < len(line) <= protocol.LONGEST_EVENT
    assert (event["reason"], set(event["detail"]), event["crashed"]) == ("qemu-failed", {letter}, True)


def test_too_many_lines_are_suppressed(said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limit = RateLimit("guest", at_once=3, a_second=1)
    for _ in range(1000):
        limit.report("guest-panicked")
    suppressed = "virtainer: guest: too many lines, further ones are not shown"
    assert said() == [*["virtainer: guest panicked"] * 3, suppressed]
    now[0] += 1.5
    for _ in range(1000):
        limit.report("guest-panicked")
    assert said() == ["virtainer: guest panicked", suppressed], "more are reported later"
    now[0] += 1000
    for _ in range(1000):
        limit.report("guest-panicked")
    assert len(said()) == 4


def test_repeated_unexpected_lines_are_suppressed(said: Callable[[], list[str]], tmp_path: Path) -> None:
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
    assert all(line.startswith("virtainer: helper: unexpected: virtainer: over: ") for line in lines[:20])
    assert lines[20:] == [
        "virtainer: helper: unexpected: too many lines, further ones are not shown",
        "virtainer: helper: ready",
    ]
    theirs.close()
    ours.close()


def test_a_guest_that_does_not_read_blocks_nothing(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    helper = clone_agent.CloneAgent(ours, "db", tmp_path / "waits")
    began = time.monotonic()
    for _ in range(10_000):
        helper.after_restore(clone=True)
    assert time.monotonic() - began < 5
    theirs.close()
    ours.close()
