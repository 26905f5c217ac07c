"""The serial console: its input, its text, and reports of the kernel."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers import EngineError, VMGone, WaitTimeout
from pytest_virtainers.engine.output import HEAD, TAIL, Record
from pytest_virtainers.support import polling
from pytest_virtainers.vm.console import Console
from tests.unit.fake_output import FakeOutput

if TYPE_CHECKING:
    from collections.abc import Iterator

OOM = b"[ 9.%d] Out of memory: Killed process %d (tail) total-vm:1kB\r\n"
CGROUP_OOM = b"Memory cgroup out of memory: Killed process 3 (x)\n"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_PAUSE_SECONDS", 0.001)


class Guest:
    """A container whose console echoes its input, as a guest does; it accepts a few bytes at a time."""

    def __init__(self) -> None:
        self.stdout = FakeOutput()
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


def test_send_returns_when_all_text_was_written(guest: Guest, console: Console) -> None:
    console.send("rööt\n")
    assert bytes(guest.stdout) == "rööt\n".encode()
    assert guest.done == ["close_input", "recv", "close"]


def test_expect_starts_where_the_last_match_ended(guest: Guest, console: Console) -> None:
    guest.stdout += b"login: one\r\nlogin: two\r\n"
    assert console.expect(r"^login: (\w+)$")[1] == "one"
    assert console.expect(r"login: (\w+)")[1] == "two"
    with pytest.raises(WaitTimeout):
        console.expect("login", timeout=0.01)


def test_expect_after_send_matches_only_new_text(guest: Guest, console: Console) -> None:
    guest.stdout += b"$ "
    console.send("echo x\n")
    threading.Timer(0.02, lambda: guest.stdout.append(b"x\r\n\x1b[32m$\x1b[0m ")).start()
    assert console.expect(r"^x\n\$", timeout=60)[0] == "x\n$", (
        "without escape sequences, and without the earlier prompt"
    )


def test_expect_times_out_with_the_last_lines(guest: Guest, console: Console) -> None:
    guest.stdout += b"first\nlast\n"
    with pytest.raises(WaitTimeout) as caught:
        console.expect("login:", timeout=0.01)
    assert str(caught.value) == ("waited 0.01 s for 'login:' on the console of web; seen last: \n  | first\n  | last")


def raise_ended() -> None:
    raise VMGone("web has ended")


def test_expect_ends_with_the_machine(guest: Guest) -> None:
    guest.stdout += b"Power down\r\n"
    console = Console(guest, "web", check=raise_ended)  # type: ignore[arg-type]
    assert console.expect("^Power down$"), "existing text matches even with timeout=0"
    with pytest.raises(VMGone):
        console.expect("login:", timeout=3600)


def test_expect_timeout_is_scaled_without_kvm(guest: Guest) -> None:
    console = Console(guest, "web", scaled=lambda seconds: seconds * 10)  # type: ignore[arg-type]
    with pytest.raises(WaitTimeout, match=r"waited 0\.01 s"):
        console.expect("login:", timeout=0.001)


def test_send_to_a_console_that_accepts_no_input_is_an_error(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VMGone):
        Console(guest, "web", check=raise_ended).send("root\n")  # type: ignore[arg-type]
    assert guest.stdout.size == 0

    def refuse(_data: bytes) -> int:
        raise BrokenPipeError("Broken pipe")

    monkeypatch.setattr(guest, "send", refuse)
    with pytest.raises(EngineError, match=r"web: its console accepted no input \(Broken pipe\)"):
        Console(guest, "web").send("root\n")  # type: ignore[arg-type]
    assert guest.done == ["close"]


def test_text_may_end_the_machine(guest: Guest) -> None:
    def ended_by_keys() -> None:
        if guest.stdout.size:
            raise_ended()

    Console(guest, "web", check=ended_by_keys).send("poweroff\n")  # type: ignore[arg-type]
    assert bytes(guest.stdout) == b"poweroff\n"


def test_killed_for_memory_lists_reports_since_the_last_start(guest: Guest, console: Console) -> None:
    guest.stdout += OOM % (1, 2)
    console.forget_reports()
    assert console.killed_for_memory() == []
    guest.stdout += OOM % (5, 7) + CGROUP_OOM
    assert console.killed_for_memory() == [
        "Out of memory: Killed process 7 (tail) total-vm:1kB",
        "Memory cgroup out of memory: Killed process 3 (x)",
    ]


def test_killed_for_memory_can_start_at_a_size(guest: Guest, console: Console) -> None:
    guest.stdout += OOM % (1, 2)
    then = console.size
    assert console.killed_for_memory(then) == []
    guest.stdout += CGROUP_OOM
    assert console.killed_for_memory(then) == ["Memory cgroup out of memory: Killed process 3 (x)"]
    console.forget_reports()
    assert console.killed_for_memory(then) == []


def test_a_panic_counts_until_the_next_start(guest: Guest, console: Console) -> None:
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
    """Counts how much of it is read."""

    given = 0

    def __init__(self, empty: str) -> None:
        super().__init__(empty)
        COUNTED.append(self)

    def parts(self, position: int = 0) -> Iterator[tuple[int, str]]:
        for start, part in super().parts(position):
            self.given += len(part)
            yield start, part


COUNTED: list[Counting] = []


def test_a_search_reads_only_new_text(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_virtainers.vm.console.Record", Counting)
    console = Console(guest, "web")  # type: ignore[arg-type]
    text = COUNTED.pop()
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


def test_both_ends_of_a_flood_are_kept_and_found(guest: Guest, console: Console) -> None:
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


def test_reports_inside_a_flood_are_seen(guest: Guest, console: Console) -> None:
    flooded(guest, HEAD + 100_000)
    guest.stdout += b"Kernel panic - not syncing: early\r\n"
    flooded(guest, FLOOD)
    assert "early" not in console.text
    assert console.panic() == "Kernel panic - not syncing: early"


def test_a_match_may_arrive_in_pieces(guest: Guest, console: Console) -> None:
    search = console.search("^begin.*?end$")
    guest.stdout += b"x\nbeg"
    assert search.look() is None
    guest.stdout += b"in " + 1000 * b"- "
    assert search.look() is None
    guest.stdout += b"the end"
    assert search.look()


def test_escape_sequences_are_not_in_the_text(guest: Guest, console: Console) -> None:
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


def test_long_lines_are_cut_in_messages(guest: Guest, console: Console) -> None:
    guest.stdout += b"first\n" + 100_000 * b"x"
    assert console.tail() == f"  | {1000 * 'x'}"


def test_a_console_that_is_followed_late_marks_what_is_missing(guest: Guest) -> None:
    flooded(guest, 2 * FLOOD)
    console = Console(guest, "web")  # type: ignore[arg-type]
    assert re.search(r"\[… \d+ bytes not kept …\]", console.text)
    assert console.size == guest.stdout.size
