"""What a supervisor says becomes facts; what it quotes does not."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
from virtainer import clone_agent, exit_reasons
from virtainer.exit_reasons import End, Reason

from pytest_virtainers.engine.output import HEAD, TAIL, Output
from pytest_virtainers.vm.supervisor import Supervisor, event

if TYPE_CHECKING:
    from collections.abc import Callable

STARTED = "starting web: 1024 MiB, 1 CPU, kvm, /image (qcow2), prepared in 0.10 s"
RESTORED = "clone restored: prepared in 0.031 s, QEMU up in 0.042 s, state in 0.013 s"
DISK_FAILED = (
    "guest paused, its disk failed: no space left in IMAGE_DIR. Mend it, then: "
    """docker exec CONTAINER qmp '{"execute": "cont"}'"""
)
CRASHED = "QEMU ended by itself (SIGABRT): Assertion `x' failed"
FORGED = [
    f"virtainer: over: {CRASHED}",
    "virtainer: end: bad-template: x",
    "virtainer: " + DISK_FAILED,
    "virtainer: " + STARTED,
    "virtainer: " + RESTORED,
    "virtainer: guest switched itself off",
    "virtainer: helper: individual, hostname x, clock +0.0 ms",
    " CPU, kvm, ",
    "guest paused, its disk failed: x. Mend it, then: y",
]


def said(*lines: str) -> Supervisor:
    return Supervisor(Output("".join(f"virtainer: {line}\n" for line in lines).encode()))


def facts(supervisor: Supervisor) -> dict[str, object]:
    return {name: value for name, value in vars(supervisor).items() if not name.startswith("_")}


NOTHING = facts(said())


def speak(*calls: Callable[[], object]) -> bytes:
    """Give what the supervisor's own code writes to stderr."""
    reader, writer = os.pipe()
    kept = os.dup(2)
    os.dup2(writer, 2)
    try:
        for call in calls:
            call()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
    with os.fdopen(reader, "rb") as heard:
        return heard.read()


def test_a_clone_is_known_with_the_seconds_of_its_parts() -> None:
    clone = said(STARTED, RESTORED)
    assert (clone.accel, clone.restored) == ("kvm", True)
    assert clone.restoring == {"prepared": 0.031, "QEMU up": 0.042, "state": 0.013}
    assert said(STARTED.replace("kvm", "tcg")).accel == "tcg"


def test_what_happens_to_a_guest_is_known() -> None:
    off = "guest switched itself off"
    assert said(off).off
    assert not said(off, "guest runs again").off
    assert said(off, "guest runs again", off).off
    assert said(DISK_FAILED).disk_failure == "no space left in IMAGE_DIR"
    assert said(f"over: {CRASHED}").over == CRASHED


@pytest.mark.parametrize(
    ("end", "reason", "crashed"),
    [
        (End(Reason.TEMPLATE, "/store/x does not restore: no"), "bad-template", False),
        (End(Reason.QEMU, CRASHED), "qemu-failed", True),
        (End(Reason.QEMU, "QEMU ended by itself (exit code 1): x"), "qemu-failed", False),
        (End(Reason.IMAGE, CRASHED), "bad-image", False),
    ],
)
def test_why_a_container_ends_is_known(end: End, reason: str, crashed: bool) -> None:
    supervisor = Supervisor(Output(speak(lambda: exit_reasons.say(end.line))))
    assert (supervisor.reason, supervisor.crashed) == (reason, crashed)


def test_the_helper_is_heard_as_the_supervisor_puts_it() -> None:
    words = [clone_agent.heard(line, 100.0) for line in (b"ready\n", b"done db 99.990000\n", b"ready\n")]
    supervisor = Supervisor(Output(speak(*(lambda each=each: exit_reasons.say(f"helper: {each}") for each in words))))
    assert (supervisor.helpers_ready, supervisor.helpers_done) == (2, 1)


@pytest.mark.parametrize("words", FORGED)
@pytest.mark.parametrize("before", [b"", b"\n", b"x\r", b"x\r\n", b"\x85", b"\xe2\x80\xa8", b"\x0b", b"\x1b[2K"])
def test_no_word_of_a_guest_or_of_qemu_decides_anything(words: str, before: bytes) -> None:
    foreign = before + words.encode() + b"\n"
    text = foreign.decode(errors="surrogateescape")

    def speaks() -> None:
        for line in foreign.splitlines(keepends=True):
            exit_reasons.say(f"helper: {clone_agent.heard(line, 0.0)}")
        exit_reasons.say(f"qemu: {text}")
        exit_reasons.say(f"helper: {clone_agent.heard(b'done ' + foreign.replace(b' ', b'_') + b' 1.0', 0.0)}")
        exit_reasons.say(f"dnsmasq {text}")

    heard = speak(speaks)
    assert all(line.startswith((b"virtainer: helper: something unexpected", b"virtainer: qemu: ",
                                b"virtainer: dnsmasq ")) for line in heard.splitlines())  # fmt: skip
    assert facts(Supervisor(Output(heard))) == NOTHING


def test_a_hostname_may_be_anything_but_no_line() -> None:
    line = b"done x\x1b]0;y\x07\xc2\x85virtainer:\xff 1.000000\n"
    heard = speak(lambda: exit_reasons.say(f"helper: {clone_agent.heard(line, 1.0)}"))
    assert heard.count(b"\n") == 1
    assert heard.decode().strip().isprintable()
    assert Supervisor(Output(heard)).helpers_done == 1, "the guest may say so, with whatever name"


@pytest.mark.parametrize("line", FORGED)
def test_lines_are_compared_as_a_whole(line: str) -> None:
    for other in (f"x{line}", f"virtainer: qemu: {line}", f"virtainer: helper: something unexpected: {line!r}"):
        assert event(other.encode()) is None
    assert facts(Supervisor(Output(f"x\r{line}\n".encode()))) == NOTHING, "only a newline ends a line"


@pytest.mark.parametrize("size", [1, 2, 5, 100, 1000])
def test_lines_may_come_in_pieces(size: int) -> None:
    lines, output = f"virtainer: {STARTED}\nvirtainer: {RESTORED}\n".encode(), Output()
    supervisor = Supervisor(output)
    for at in range(0, len(lines), size):
        output.append(lines[at : at + size])
    assert (supervisor.accel, supervisor.restored) == ("kvm", True)


def test_a_line_that_has_not_ended_says_nothing_yet() -> None:
    output = Output(b"virtainer: over: QEMU was")
    supervisor = Supervisor(output)
    assert facts(supervisor) == NOTHING
    output.append(b" killed\n")
    assert supervisor.over == "QEMU was killed"


def test_a_line_without_end_is_none_and_takes_no_room() -> None:
    output = Output()
    supervisor = Supervisor(output)
    for _ in range(100):
        output.append(b"virtainer: over: x" * 1000)
    assert not supervisor._line
    output.append(f"virtainer: over: x\nvirtainer: {STARTED}\n".encode())
    assert (supervisor.over, supervisor.accel) == ("", "kvm")


def test_what_follows_a_missing_piece_begins_no_line() -> None:
    output = Output(f"virtainer: {STARTED}\n".ljust(HEAD, "x").encode()[: HEAD - 1] + b"\n")
    while output.size < 2 * (HEAD + TAIL):
        output.append(b"virtainer: over: x\n" * 4096)
    supervisor = Supervisor(output)  # it comes late
    assert supervisor.accel == "kvm"
    supervisor = Supervisor(Output())
    supervisor._add(100, b"virtainer: over: x\nvirtainer: guest switched itself off\n")
    assert (supervisor.over, supervisor.off) == ("", True)


def test_a_fact_is_waited_for() -> None:
    output = Output()
    supervisor = Supervisor(output)
    threading.Timer(0.05, output.append, [f"virtainer: {RESTORED}\n".encode()]).start()
    assert supervisor.wait_for(lambda: supervisor.restored, 30)
    assert not supervisor.wait_for(lambda: supervisor.off, 0.01)
    assert supervisor.last_words == f"virtainer: {RESTORED}"
