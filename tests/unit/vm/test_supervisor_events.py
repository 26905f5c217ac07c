"""Events of the supervisor become facts; the text that they quote does not."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from virtainer import clone_agent, events, protocol

from pytest_virtainers.engine.output import HEAD, TAIL, Output
from pytest_virtainers.support import runtime_modules
from pytest_virtainers.vm.supervisor_events import Reader, Supervisor, parse, readable
from tests.unit.memory import allocated
from tests.unit.vm.fake_container import RUNS, event

if TYPE_CHECKING:
    from collections.abc import Callable

STARTED = event(
    "started", name="web", ram_mib=1024, cpus=1, accel="kvm", disk="/image", format="qcow2", prepared_s=0.1
)
DISK_FAILED = event("disk-failed", cause="no space left in IMAGE_DIR")
OFF, ON = event("guest-off"), event("guest-on")
CRASH = "QEMU ended by itself (SIGABRT): Assertion `x' failed"
BOOT_CRASHED = event("boot-crashed", detail=CRASH)
FORGED = [
    BOOT_CRASHED,
    event("over", detail=CRASH, crashed=True),
    event("end", reason="bad-template", detail="x", crashed=False),
    DISK_FAILED,
    STARTED,
    RUNS,
    OFF,
    event("helper-done", hostname="x", clock_ms=0.0),
    b'"}, "event": "guest-off", {"x": "\n',
    b"virtainer: guest switched itself off\n",
]


def said(*lines: bytes) -> Supervisor:
    return Supervisor(Output(b"".join(lines)))


def facts(supervisor: Supervisor) -> dict[str, object]:
    return {name: value for name, value in vars(supervisor).items() if not name.startswith("_")}


NOTHING = facts(said())


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Return the stderr of the supervisor's own code during a call."""
    monkeypatch.setenv(protocol.Variable.EVENTS, protocol.JSON)

    def record(*calls: Callable[[], object]) -> bytes:
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
        with os.fdopen(reader, "rb") as pipe:
            return pipe.read()

    return record


def test_both_sides_read_the_same_file() -> None:
    assert runtime_modules.protocol.SENTENCES == protocol.SENTENCES
    # An installed wheel has a copy.
    assert Path(str(runtime_modules.protocol.__file__)).read_bytes() == Path(protocol.__file__).read_bytes()


def test_a_restored_clone_is_recorded_with_its_timings() -> None:
    clone = said(STARTED, RUNS)
    assert (clone.accel, clone.restored) == ("kvm", True)
    assert clone.restoring == {"prepared": 0.031, "QEMU up": 0.042, "state": 0.013}
    assert said(STARTED.replace(b"kvm", b"tcg")).accel == "tcg"


def test_events_of_the_guest_are_recorded() -> None:
    assert said(OFF).off
    assert not said(OFF, ON).off
    assert said(OFF, ON, OFF).off
    assert said(DISK_FAILED).disk_failure == "no space left in IMAGE_DIR"
    assert said(event("over", detail=CRASH, crashed=True)).over == CRASH


def test_a_crash_in_a_boot_is_no_end_and_starts_the_guest() -> None:
    supervisor = said(OFF, DISK_FAILED, BOOT_CRASHED)
    assert supervisor.boot_crashes == (CRASH,)
    assert (supervisor.off, supervisor.disk_failure, supervisor.over, supervisor.crashed) == (False, "", "", False)
    assert said(BOOT_CRASHED, BOOT_CRASHED).boot_crashes == (CRASH, CRASH)


@pytest.mark.parametrize("name", ["over", "end"])
@pytest.mark.parametrize(
    ("reason", "crashed"),
    [("bad-template", False), ("qemu-failed", True), ("qemu-failed", False), ("bad-image", False)],
)
def test_the_reason_why_a_container_ends_is_recorded(
    name: str, reason: str, crashed: bool, reported: Callable[..., bytes]
) -> None:
    supervisor = said(reported(lambda: events.report(name, reason=reason, detail=CRASH, crashed=crashed)))
    assert supervisor.crashed == crashed
    assert (supervisor.reason, supervisor.over) == ((reason, "") if name == "end" else ("", CRASH))


def test_the_helpers_lines_are_events(reported: Callable[..., bytes]) -> None:
    lines = [clone_agent.parse(line, 100.0) for line in (b"ready\n", b"done db 99.990000\n", b"ready\n")]
    supervisor = said(reported(*(lambda each=each: events.report(each[0], **each[1]) for each in lines)))
    assert (supervisor.helpers_ready, supervisor.helpers_done) == (2, 1)


@pytest.mark.parametrize("words", FORGED)
@pytest.mark.parametrize("before", [b"", b"\n", b"x\r", b"x\r\n", b"\x85", b"\xe2\x80\xa8", b"\x0b", b"\x1b[2K"])
def test_output_of_guest_and_qemu_changes_nothing(
    words: bytes, before: bytes, reported: Callable[..., bytes]
) -> None:
    foreign = before + words
    text = foreign.decode(errors="surrogateescape")

    def report() -> None:
        for line in foreign.splitlines(keepends=True):
            name, fields = clone_agent.parse(line, 0.0)
            events.report(name, **fields)
        name, fields = clone_agent.parse(b"done " + foreign.replace(b" ", b"_") + b" 1.0", 0.0)
        events.report(name, **fields)
        events.report("qemu", line=text)
        events.note(text)

    lines = reported(report)
    assert {json.loads(each)["event"] for each in lines.splitlines()} == {"helper-unexpected", "qemu", "note"}
    assert facts(said(lines)) == NOTHING
    assert all(each.startswith(b"virtainer: ") for each in readable(lines).splitlines())
    assert all(each.isprintable() for each in readable(lines).decode().splitlines())


def test_a_hostname_cannot_start_a_line(reported: Callable[..., bytes]) -> None:
    name, fields = clone_agent.parse(b"done x\x1b]0;y\x07\xc2\x85virtainer:\xff 1.000000\n", 1.0)
    line = reported(lambda: events.report(name, **fields))
    assert line.count(b"\n") == 1
    assert line.decode().strip().isprintable()
    assert said(line).helpers_done == 1, "the guest may report any name"


@pytest.mark.parametrize("line", FORGED)
def test_lines_are_compared_as_a_whole(line: bytes) -> None:
    for other in (b"x" + line, b" " + line, line.strip() + b"x", b"virtainer: qemu: " + line, b"[" + line):
        assert parse(other) is None
    assert facts(said(b"x\r" + line)) == NOTHING, "only a newline ends a line"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"{}",
        b"null",
        b"[]",
        b'"guest-off"',
        b'{"event": "guest-off"',
        b'{"event": null}',
        b'{"event": []}',
        b'{"event": {}}',
        b'{"event": "unheard-of"}',
        b'{"event": "restored"}',
        b'{"event": "restored", "prepared_s": "1", "qemu_s": 1, "state_s": 1}',
        b'{"event": "restored", "prepared_s": null, "qemu_s": 1, "state_s": 1}',
        b'{"event": "restored", "prepared_s": [1], "qemu_s": 1, "state_s": 1}',
        b'{"event": "restored", "prepared_s": %b, "qemu_s": 1, "state_s": 1}' % (b"9" * 3000),
        b'{"event": "guest-off", "x": ' + b"[" * 3900,
        b'{"event": "guest-off", "x": "\xff"}',
        b'{"event": "guest-off", "x": "%b"}' % (b"x" * 4000),
        b"qemu-system-x86_64: warning: {",
        b'  File "run.py", line 1, in main',
    ],
)
def test_other_lines_are_words(line: bytes) -> None:
    assert parse(line) is None
    supervisor = said(line + b"\n")
    assert facts(supervisor) == NOTHING
    assert supervisor.words == line.decode(errors="replace").strip()


@pytest.mark.parametrize("size", [1, 2, 5, 100, 1000])
def test_lines_may_come_in_pieces(size: int) -> None:
    lines, output = STARTED + b"Traceback:\n" + RUNS, Output()
    supervisor, reader, shown = Supervisor(output), Reader(), b""
    for at in range(0, len(lines), size):
        output.append(lines[at : at + size])
        shown += reader.feed(lines[at : at + size])
    assert (supervisor.accel, supervisor.restored) == ("kvm", True)
    assert shown == readable(lines)
    assert shown.decode().splitlines() == [
        "virtainer: starting web: 1024 MiB, 1 CPU, kvm, /image (qcow2), prepared in 0.10 s",
        "Traceback:",
        "virtainer: clone restored: prepared in 0.031 s, QEMU up in 0.042 s, state in 0.013 s",
    ]


class Unrecorded(Output):
    """Output that a test passes to the reader, piece by piece, without recording it."""

    def follow(self, reader: Callable[[int, bytes], object]) -> None:
        self.read = reader


def test_an_unfinished_line_is_not_an_event_yet() -> None:
    output = Output(OFF[:-1])
    supervisor = Supervisor(output)
    assert facts(supervisor) == NOTHING
    output.append(b"\n")
    assert supervisor.off


def test_an_endless_line_is_not_an_event_and_is_not_kept() -> None:
    output, reader, shown = Unrecorded(), Reader(), 0
    supervisor = Supervisor(output)

    def flood() -> None:
        nonlocal shown
        for number in range(100):
            output.read(number * 1000 * len(OFF[:-1]), OFF[:-1] * 1000)
            shown += len(reader.feed(OFF[:-1] * 1000))

    assert allocated(flood) < 16 * 1024
    assert shown + len(reader.end()) == 100_000 * len(OFF[:-1])
    output.read(100_000 * len(OFF[:-1]), OFF + STARTED)
    assert (supervisor.off, supervisor.accel) == (False, "kvm")


def test_output_after_a_gap_does_not_start_a_line() -> None:
    output = Output(STARTED.ljust(HEAD, b"x")[: HEAD - 1] + b"\n")
    while output.size < 2 * (HEAD + TAIL):
        output.append(event("note", text="x") * 4096)
    supervisor = Supervisor(output)  # it comes late
    assert supervisor.accel == "kvm"
    output = Unrecorded()
    supervisor = Supervisor(output)
    output.read(100, event("over", detail="x") + OFF)
    assert (supervisor.over, supervisor.off) == ("", True)


def test_wait_for_waits_until_a_fact_holds() -> None:
    output = Output()
    supervisor = Supervisor(output)
    threading.Timer(0.05, output.append, [RUNS]).start()
    assert supervisor.wait_for(lambda: supervisor.restored, 30)
    assert not supervisor.wait_for(lambda: supervisor.off, 0.01)
    assert supervisor.last_words == readable(RUNS).decode().strip()


def test_the_words_of_long_output_are_its_last_complete_lines() -> None:
    lines = b"".join(event("note", text=f"line {number}") for number in range(1000))
    words = said(lines).words.splitlines()
    assert words == [f"virtainer: line {number}" for number in range(1000 - len(words), 1000)]
    assert len(words) > 100
    assert said(b"x" * 10_000).words == "x" * 8192, "one line"
