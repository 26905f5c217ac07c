"""A command that runs while the test continues, with a fake guest at the other end."""

from __future__ import annotations

import threading
import time
from typing import IO, TYPE_CHECKING

import pytest

from pytest_virtainers import CommandTimeout, VirtainerError, VMGone
from pytest_virtainers.vm import process as module
from pytest_virtainers.vm.process import Process
from pytest_virtainers.vm.shell import Leader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Guest:
    """Runs one command; the test determines its output and its end."""

    def __init__(self, grace: float = 5.0) -> None:
        self.stdin: IO[bytes]
        self.out: Callable[[bytes], object]
        self.err: Callable[[bytes], object]
        self.leader = Leader()
        self.signals: list[tuple[int, str]] = []
        self.heeds: dict[str, int | BaseException] = {}  # signals and their effects
        self.outcome: int | BaseException = 0
        self.over = threading.Event()
        started = threading.Event()

        def execute(stdin: IO[bytes], out: Callable[[bytes], object], err: Callable[[bytes], object]) -> int:
            self.stdin, self.out, self.err = stdin, out, err
            self.leader.pass_on = err
            started.set()
            self.over.wait(60)
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return self.outcome

        self.process = Process("make", "web", execute, self.leader, self._take, grace=grace)
        assert started.wait(60)

    def _take(self, session: int, name: str) -> None:
        self.signals.append((session, name))
        if name in self.heeds:
            self.end(self.heeds[name])

    def end(self, outcome: int | BaseException = 0) -> None:
        self.outcome = outcome
        self.over.set()


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.end()
    guest.process.abandon()


def test_lines_yields_each_line_as_soon_as_it_is_complete(guest: Guest) -> None:
    lines = guest.process.lines(timeout=60)
    guest.out(b"one\ntw")
    assert next(lines) == "one"
    threading.Timer(0.05, guest.out, [b"o\n\n\xff"]).start()
    assert [next(lines), next(lines)] == ["two", ""]
    guest.end()
    assert list(lines) == ["\udcff"], "the last one needs no end of line"
    assert list(guest.process.lines()) == []


def test_unread_lines_are_found_quickly(guest: Guest) -> None:
    guest.out(b"some line of a log that is followed from its start\n" * 100_000)
    guest.end()
    began = time.monotonic()
    assert sum(1 for _ in guest.process.lines(timeout=60)) == 100_000
    assert time.monotonic() - began < 30


def test_a_timeout_has_the_output_so_far(guest: Guest) -> None:
    guest.out(b"half a line")
    with pytest.raises(CommandTimeout, match=r"'make' on web was still running after .*\n.*\nhalf a line"):
        next(guest.process.lines(timeout=0.01))
    with pytest.raises(CommandTimeout):
        guest.process.wait(0.01)
    assert guest.process.poll() is None


def test_wait_returns_the_whole_result(guest: Guest) -> None:
    guest.out(b"out")
    guest.err(b"err")
    guest.end(3)
    result = guest.process.wait(60)
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out", "err")
    assert guest.process.poll() == 3
    assert guest.process.wait() == result, "its duration does not grow"


def test_written_input_arrives_at_once(guest: Guest) -> None:
    guest.process.write("zwölf\n")
    assert guest.stdin.read(4096) == "zwölf\n".encode()
    guest.process.write(b"\xff")
    guest.process.stdin.close()
    assert guest.stdin.read(4096) == b"\xff"
    assert guest.stdin.read(4096) == b""


def test_the_end_of_the_machine_is_raised_by_every_wait(guest: Guest) -> None:
    lines = guest.process.lines(timeout=60)
    guest.out(b"one\n")
    guest.end(VMGone("web has ended"))
    assert next(lines) == "one"
    for waiting in (lambda: next(lines), guest.process.wait, guest.process.poll):
        with pytest.raises(VMGone, match="web has ended"):
            waiting()


def test_a_block_raises_its_own_exception(guest: Guest) -> None:
    guest.end(VMGone("web has ended"))
    with pytest.raises(VMGone):
        guest.process.wait(60)
    with pytest.raises(ValueError, match="of the test"), guest.process:
        raise ValueError("of the test")


def test_signals_are_sent_to_the_session_by_name(guest: Guest) -> None:
    guest.leader(b"4711\n")
    guest.process.send_signal("SIGUSR1")
    guest.process.send_signal("HUP")
    guest.process.terminate()
    guest.process.kill()
    assert guest.signals == [(4711, "USR1"), (4711, "HUP"), (4711, "TERM"), (4711, "KILL")]
    guest.end()
    guest.process.wait(60)
    guest.process.kill()
    assert len(guest.signals) == 4, "the connection has ended"


def test_a_signal_waits_until_the_session_is_known(guest: Guest) -> None:
    threading.Timer(0.05, guest.leader, [b"4711\n"]).start()
    began = time.monotonic()
    guest.process.terminate()
    assert guest.signals == [(4711, "TERM")]
    assert time.monotonic() - began < 10


def test_an_unknown_session_is_an_error(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_START_SECONDS", 0.01)
    with pytest.raises(VirtainerError, match="'make' on web: its shell did not report its session"):
        guest.process.terminate()


def test_the_end_of_a_block_terminates_the_command() -> None:
    guest = Guest()
    guest.leader(b"1\n")
    with guest.process:
        threading.Timer(0.05, guest.end, [143]).start()
    assert guest.signals == [(1, "TERM")]
    assert guest.process.stdin.closed


def test_a_command_that_ignores_sigterm_is_killed() -> None:
    guest = Guest(grace=0.01)
    guest.leader(b"1\n")
    guest.heeds = {"KILL": -1}
    with guest.process:
        pass
    assert guest.signals == [(1, "TERM"), (1, "KILL")]
    assert guest.process.poll() == -1
    assert guest.process.stdin.closed


def test_a_command_that_survives_sigkill_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_SECONDS", 0.01)
    guest = Guest(grace=0.01)
    guest.leader(b"1\n")
    with pytest.raises(CommandTimeout, match="'make' on web was still running"), guest.process:
        pass
    assert guest.process.stdin.closed
    guest.end()


def test_a_failed_end_does_not_hide_the_exception_of_the_block() -> None:
    guest = Guest()
    guest.leader(b"1\n")
    guest.heeds = {"TERM": VMGone("web has ended")}
    with pytest.raises(ValueError, match="of the test"), guest.process:
        raise ValueError("of the test")
    assert guest.signals == [(1, "TERM")]
    assert guest.process.stdin.closed
