"""The serial console: keys in, text out, and what its kernel has met."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers import EngineError, VMGone, WaitTimeout
from pytest_virtainers.engine.output import HEAD, TAIL, Record
from pytest_virtainers.support import deadline
from pytest_virtainers.vm.console import Console
from tests.unit.fake_output import Said

if TYPE_CHECKING:
    from collections.abc import Iterator

OOM = b"[ 9.%d] Out of memory: Killed process %d (tail) total-vm:1kB\r\n"
CGROUP_OOM = b"Memory cgroup out of memory: Killed process 3 (x)\n"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_PAUSE_SECONDS", 0.001)


class Guest:
    """A container whose console shows what is typed, as a guest's does; it takes a few bytes at a time."""

    def __init__(self) -> None:
        self.stdout = Said()
        self.done: list[str] = []

    def stream(self, command: list[str]) -> Any:
        assert command == ["console", "--type"]
        return self

    def send(self, data: bytes) -> int:
        self.stdout += data[:3]
        return len(data[:3])

    def close_input(self) -> None:
        self.done.append("close_input")

    def recv(self, _size: int) -> bytes:
        self.done.append("recv")
        return b""

    def close(self) -> None:
        self.done.append("close")


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def console(guest: Guest) -> Console:
    return Console(guest, "web")  # type: ignore[arg-type]


def test_all_that_is_sent_arrives_before_it_returns(guest: Guest, console: Console) -> None:
    console.send("rööt\n")
    assert bytes(guest.stdout) == "rööt\n".encode()
    assert guest.done == ["close_input", "recv", "close"]


def test_each_expectation_starts_where_the_last_one_ended(guest: Guest, console: Console) -> None:
    guest.stdout += b"login: one\r\nlogin: two\r\n"
    assert console.expect(r"^login: (\w+)$")[1] == "one"
    assert console.expect(r"login: (\w+)")[1] == "two"
    with pytest.raises(WaitTimeout):
        console.expect("login", timeout=0.01)


def test_after_sending_only_what_is_new_counts(guest: Guest, console: Console) -> None:
    guest.stdout += b"$ "
    console.send("echo x\n")
    threading.Timer(0.02, lambda: guest.stdout.append(b"x\r\n\x1b[32m$\x1b[0m ")).start()
    assert console.expect(r"^x\n\$", timeout=5)[0] == "x\n$", "without escape sequences, and not the prompt of before"


def test_what_does_not_come_is_told_with_the_last_lines(guest: Guest, console: Console) -> None:
    guest.stdout += b"first\nlast\n"
    with pytest.raises(WaitTimeout) as caught:
        console.expect("login:", timeout=0.01)
    assert str(caught.value) == ("waited 0.01 s for 'login:' on the console of web; seen last: \n  | first\n  | last")


def gone() -> None:
    raise VMGone("web has ended")


def test_what_a_machine_that_has_ended_did_not_show_is_not_waited_for(guest: Guest) -> None:
    guest.stdout += b"Power down\r\n"
    console = Console(guest, "web", check=gone)  # type: ignore[arg-type]
    assert console.expect("^Power down$"), "what is there is there"
    with pytest.raises(VMGone):
        console.expect("login:", timeout=3600)


def test_the_time_to_expect_something_is_that_of_a_machine_with_kvm(guest: Guest) -> None:
    console = Console(guest, "web", scaled=lambda seconds: seconds * 10)  # type: ignore[arg-type]
    with pytest.raises(WaitTimeout, match=r"waited 0\.01 s"):
        console.expect("login:", timeout=0.001)


def test_keys_that_nobody_takes_are_told(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VMGone):
        Console(guest, "web", check=gone).send("root\n")  # type: ignore[arg-type]
    assert guest.stdout.size == 0

    def refuse(_data: bytes) -> int:
        raise BrokenPipeError("Broken pipe")

    monkeypatch.setattr(guest, "send", refuse)
    with pytest.raises(EngineError, match=r"web: its console accepted no input \(Broken pipe\)"):
        Console(guest, "web").send("root\n")  # type: ignore[arg-type]
    assert guest.done == ["close"]


def test_keys_may_end_the_machine(guest: Guest) -> None:
    def ended_by_keys() -> None:
        if guest.stdout.size:
            gone()

    Console(guest, "web", check=ended_by_keys).send("poweroff\n")  # type: ignore[arg-type]
    assert bytes(guest.stdout) == b"poweroff\n"


def test_processes_killed_for_memory_are_listed_for_this_life_of_the_guest(guest: Guest, console: Console) -> None:
    guest.stdout += OOM % (1, 2)
    console.forget_reports()
    assert console.killed_for_memory() == []
    guest.stdout += OOM % (5, 7) + CGROUP_OOM
    assert console.killed_for_memory() == [
        "Out of memory: Killed process 7 (tail) total-vm:1kB",
        "Memory cgroup out of memory: Killed process 3 (x)",
    ]


def test_what_was_before_a_certain_time_may_be_left_out(guest: Guest, console: Console) -> None:
    guest.stdout += OOM % (1, 2)
    then = console.size
    assert console.killed_for_memory(then) == []
    guest.stdout += CGROUP_OOM
    assert console.killed_for_memory(then) == ["Memory cgroup out of memory: Killed process 3 (x)"]
    console.forget_reports()
    assert console.killed_for_memory(then) == []


def test_a_panic_is_one_of_this_life(guest: Guest, console: Console) -> None:
    guest.stdout += b"[ 1.0] Kernel panic - not syncing: sysrq\r\n"
    assert console.panic() == "Kernel panic - not syncing: sysrq"
    console.forget_reports()
    assert console.panic() is None


FLOOD = 3 * (HEAD + TAIL)


def flooded(guest: Guest, size: int) -> None:
    piece = (b"x" * 78 + b"\r\n") * 800
    for _ in range(size // len(piece) + 1):
        guest.stdout.append(piece)


class Counting(Record[str]):
    """Counts how much of it is handed out."""

    given = 0

    def parts(self, position: int = 0) -> Iterator[tuple[int, str]]:
        for start, part in super().parts(position):
            self.given += len(part)
            yield start, part


def test_a_look_costs_the_same_whatever_was_printed_before(guest: Guest, console: Console) -> None:
    console._text = text = Counting("")
    costs = []
    for size in (100_000, FLOOD):
        flooded(guest, size)
        waiting = console.search("never")
        waiting.look()
        text.given, waiting.looked_at = 0, 0
        guest.stdout += b"new\r\n"
        for _ in range(10):
            console.panic(), console.killed_for_memory(), console.stalled(), console.tail(), waiting.look()
        costs.append((text.given, waiting.looked_at))
    (given, looked), (given_later, looked_later) = costs
    assert given_later <= given < 12 * 64 * 1024 + 100
    assert looked_later <= looked <= 64 * 1024 + len("new\n")
    assert len(console._kernel._line) < 100, "what was looked at is not looked at again"


def test_of_a_flood_the_beginning_and_the_end_are_kept_and_found(guest: Guest, console: Console) -> None:
    guest.stdout += b"the first line\r\n"
    flooded(guest, FLOOD)
    guest.stdout += OOM % (1, 2) + b"the last line\r\n"
    text = console.text
    assert text.startswith("the first line\nxxx")
    assert text.endswith("the last line\n")
    assert re.search(r"x\n\[… \d+ characters not kept …\]\n", text)
    assert len(text) < HEAD + TAIL + 100_000
    assert console.size > FLOOD
    assert console.search("^the first line$").look()
    assert console.expect("^the last line$")
    assert console.killed_for_memory(FLOOD) == ["Out of memory: Killed process 2 (tail) total-vm:1kB"]
    guest.stdout += b"login: "
    assert console.expect("^login: $").string[-7:] == "login: "


def test_what_a_flood_hides_was_seen_as_it_came(guest: Guest, console: Console) -> None:
    flooded(guest, HEAD + 100_000)
    guest.stdout += b"Kernel panic - not syncing: early\r\n"
    flooded(guest, FLOOD)
    assert "early" not in console.text
    assert console.panic() == "Kernel panic - not syncing: early"


def test_a_match_may_come_in_pieces(guest: Guest, console: Console) -> None:
    search = console.search("^begin.*?end$")
    guest.stdout += b"x\nbeg"
    assert search.look() is None
    guest.stdout += b"in " + 1000 * b"- "
    assert search.look() is None
    guest.stdout += b"the end"
    assert search.look()


def test_sequences_leave_nothing_in_the_text(guest: Guest, console: Console) -> None:
    for piece in (
        b"a\x1b",
        b"]0;own",
        b"ed\x07b\x1b[3",
        b"1mc\xc2",
        b"\x9b0md\x9b",
        b"1me\xe2\x82",
        b"\xac\r",
        b"\n",
    ):
        guest.stdout += piece
    assert console.text == "abcde€\n"


def test_a_long_line_is_cut_in_messages(guest: Guest, console: Console) -> None:
    guest.stdout += b"first\n" + 100_000 * b"x"
    assert console.tail() == f"  | {1000 * 'x'}"


def test_the_console_of_a_machine_that_is_taken_over_late_says_what_is_missing(guest: Guest) -> None:
    flooded(guest, 2 * FLOOD)
    console = Console(guest, "web")  # type: ignore[arg-type]
    assert re.search(r"\[… \d+ bytes not kept …\]", console.text)
    assert console.size == guest.stdout.size
