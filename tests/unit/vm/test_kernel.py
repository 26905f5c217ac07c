"""Reports of a guest's kernel, in pieces of any size."""

from __future__ import annotations

import pytest

from pytest_virtainers.vm.kernel import Kernel, fast_clock
from tests.unit.memory import allocated

PANIC = "[ 1.0] Kernel panic - not syncing: ünder attack\r\n".encode()
OOM = b"[ 2.0] Out of memory: Killed process 7 (cc) total-vm:1kB\r\n"
CGROUP_OOM = b"Memory cgroup out of memory: Killed process 3 (x)\n"
STALL = b"rcu: \t(detected by 0, t=5252 jiffies, g=%d, q=1 ncpus=1)\r\n"


def fed(data: bytes, size: int) -> Kernel:
    kernel = Kernel()
    for at in range(0, len(data), size):
        kernel.feed(at, data[at : at + size])
    return kernel


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_reports_are_found_once_in_pieces_of_any_size(size: int) -> None:
    said = b"boot\r\n" * 100 + OOM + STALL % 12 + CGROUP_OOM + STALL % 1 + PANIC + STALL % 12 + b"login: "
    kernel = fed(said, size)
    assert kernel.killed(0) == [
        "Out of memory: Killed process 7 (cc) total-vm:1kB",
        "Memory cgroup out of memory: Killed process 3 (x)",
    ]
    assert kernel.panic() == "Kernel panic - not syncing: \ufffd\ufffdnder attack"
    assert kernel.hangs()


def test_an_unfinished_line_counts_once() -> None:
    kernel = Kernel()
    kernel.feed(0, OOM[:-2])
    assert len(kernel.killed(0)) == 1
    kernel.feed(len(OOM) - 2, OOM[-2:])
    assert len(kernel.killed(0)) == 1
    kernel.feed(len(OOM), b"Kernel panic - not syncing: so")
    assert kernel.panic() == "Kernel panic - not syncing: so"
    kernel = fed(STALL % 12 + (STALL % 1)[:-24], 10_000)
    assert not kernel.hangs()
    kernel = fed(STALL % 1 + (STALL % 12)[: (STALL % 12).index(b"2,")], 10_000)
    assert not kernel.hangs(), "an incomplete number is not used"


def test_reports_have_positions() -> None:
    kernel = fed(OOM + CGROUP_OOM, 10)
    assert len(kernel.killed(1)) == 2
    assert kernel.killed(len(OOM)) == ["Memory cgroup out of memory: Killed process 3 (x)"]
    kernel.forget(len(OOM) + len(CGROUP_OOM))
    assert kernel.killed(0) == []


def test_an_unfinished_line_belongs_to_the_time_before_a_restart() -> None:
    kernel = Kernel()
    kernel.feed(0, b"Kernel panic - not syncing: old")
    kernel.forget(31)
    assert kernel.panic() is None
    kernel.feed(31, b" one\n")
    assert kernel.panic() is None


@pytest.mark.parametrize("size", [100, 5000, 10**6])
def test_an_endless_line_hides_nothing_and_uses_no_memory(size: int) -> None:
    flood = b"\0" * 100_000 + PANIC[:-2] + b"\0" * 100_000 + OOM[:-2] + b"x" * 100_000
    fed_with: list[Kernel] = []
    assert allocated(lambda: fed_with.append(fed(flood, size))) < 20_000
    (kernel,) = fed_with
    assert kernel.panic()
    (report,) = kernel.killed(0)
    assert len(report) < 1100


def test_of_very_many_reports_the_newest_are_kept() -> None:
    kernel = Kernel()
    said = b"".join(b"Out of memory: Killed process %d (x)\n" % number for number in range(10_000))
    said += b"".join(STALL % number for number in range(10_000))
    assert allocated(lambda: kernel.feed(0, said)) < 150_000, "10 000 numbers of stalls would take 400 000 bytes"
    assert len(kernel.killed(0)) == 200
    assert kernel.killed(0)[-1] == "Out of memory: Killed process 9999 (x)"


def test_lines_on_both_sides_of_a_gap_are_not_joined() -> None:
    kernel = Kernel()
    kernel.feed(0, b"Kernel panic ")
    kernel.feed(1000, b"- not syncing: never\n")
    assert kernel.panic() is None


CLOCK = b"check-clock: the clock tsc is 99 s ahead of the real-time clock: using acpi_pm instead"


def test_a_clock_that_ran_wrongly_is_reported_until_the_next_start() -> None:
    kernel = fed(b"[  184.212034] " + CLOCK + b"\r\nlogin: ", 7)
    assert kernel.clock
    assert kernel.clock.encode() == CLOCK
    kernel.forget(200)
    assert not kernel.clock
    assert fed(b"[    1.212034] rtc_cmos 00:05: setting system clock\r\n", 7).clock is None


BOOT = "[    0.000000] Linux version 6.12\n[   12.345678] systemd[1]: Hello\n[ 2399.500000] systemd[1]: Timed out\n"


@pytest.mark.parametrize(
    ("text", "seconds", "fast"),
    [
        (BOOT, 120, True),
        (BOOT + "login: ", 120, True),
        (BOOT, 1800, False),  # it had as long
        ("[ 2399.500000] reboot: Restarting system\n[    0.000000] Linux version 6.12\n[ 3.000001] x\n", 120, False),
        ("[ 2399.500000] reboot: Restarting system\nSeaBIOS\n", 120, False),
        ("[    0.000000] Linux version 6.12\n", 120, False),
        ("", 120, False),
    ],
)
def test_a_clock_that_is_much_too_fast_is_seen_in_the_kernels_messages(text: str, seconds: float, fast: bool) -> None:
    assert bool(fast_clock(text, seconds)) is fast
    assert not fast or "shows 2400 s since the boot, and 120 s have passed" in fast_clock(text, seconds)
