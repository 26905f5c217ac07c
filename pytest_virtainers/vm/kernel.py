"""Reports of a guest's Linux kernel on its console: a panic, processes that it killed, stalls.

The console is read once, as it arrives, in pieces of any size. Little of it is kept, as a hostile guest may write it.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

_LONGEST = 1000  # bytes of a report that are kept
_PANIC = re.compile(rb"Kernel panic - not syncing[^\r\n]{0,%d}" % _LONGEST)
_KILLED = re.compile(rb"(?:Out of memory|Memory cgroup out of memory): Killed process[^\r\n]{0,%d}" % _LONGEST)
# https://docs.kernel.org/RCU/stallwarn.html: reported after 21 s and then each 63 s, with the grace period's number.
_STALL = re.compile(rb"rcu: [^\r\n:]{0,200}\bg=(-?\d{1,20})(?=\D)")
# Of the service in this project's images, through the kernel's log (images/debian/rootfs/usr/local/sbin/check-clock).
_CLOCK = re.compile(rb"check-clock: [^\r\n]{0,%d}" % _LONGEST)
# Each with a text that is found quickly: most consoles have none.
_SIGNS = ((b"Kernel panic", _PANIC), (b"Killed process", _KILLED), (b"rcu: ", _STALL), (b"check-clock: ", _CLOCK))
_LONGEST_LINE = 4 * _LONGEST
_REPORTS = 200
_FIRST_LINE, _STAMP = "Linux version", re.compile(r"^\[ *(\d{1,9}\.\d{6})\] ", re.MULTILINE)


@dataclass(frozen=True)
class _Report:
    position: int
    pattern: re.Pattern[bytes]
    found: re.Match[bytes]

    @property
    def text(self) -> str:
        return self.found[0].decode("ascii", "replace")


class Kernel:
    """The reports since the guest's last start; of very many, the newest.

    Attributes:
        clock: the line that reports that the kernel's clock ran wrongly; `None` if there is none.
    """

    def __init__(self) -> None:
        self._line = b""  # the unfinished last line
        self._at = 0  # its position
        self.forget(0)

    def forget(self, position: int) -> None:
        """Forget the reports before a position, at which the guest was started or restored."""
        self._life = position
        self._panic: str | None = None
        self._killed: deque[tuple[int, str]] = deque(maxlen=_REPORTS)
        self._stalled: deque[bytes] = deque(maxlen=_REPORTS)  # the numbers of grace periods
        self._hangs = False
        self.clock: str | None = None

    def feed(self, position: int, data: bytes) -> None:
        """Read a piece of output, which is at `position`."""
        if position != self._at + len(self._line):  # something is missing
            self._line, self._at = b"", position
        seen = self._line + data
        done = max(seen.rfind(b"\n"), seen.rfind(b"\r")) + 1
        if len(seen) - done > _LONGEST_LINE:
            done = len(seen) - _LONGEST_LINE // 2
        for report in self._reports(seen):
            if report.position < self._at + done:
                self._note(report)
        self._line, self._at = seen[done:], self._at + done

    def _reports(self, seen: bytes) -> list[_Report]:
        """List the reports in `seen`, which begins with the unfinished line."""
        return [
            _Report(self._at + found.start(), pattern, found)
            for sign, pattern in _SIGNS
            if sign in seen
            for found in pattern.finditer(seen)
            if self._at + found.start() >= self._life
        ]

    def _note(self, report: _Report) -> None:
        if report.pattern is _PANIC:
            self._panic = self._panic or report.text
        elif report.pattern is _CLOCK:
            self.clock = report.text
        elif report.pattern is _KILLED:
            self._killed.append((report.position, report.text))
        else:
            self._hangs = self._hangs or report.found[1] in self._stalled
            self._stalled.append(report.found[1])

    def panic(self) -> str | None:
        """Return the line with which the kernel panicked, or None."""
        unfinished = (each.text for each in self._reports(self._line) if each.pattern is _PANIC)
        return self._panic or next(unfinished, None)

    def killed(self, since: int) -> list[str]:
        """Return the reports, from a position on, of processes that were killed for lack of memory."""
        unfinished = [(each.position, each.text) for each in self._reports(self._line) if each.pattern is _KILLED]
        return [text for position, text in (*self._killed, *unfinished) if position >= since]

    def hangs(self) -> bool:
        """Return whether the same stalled grace period was reported twice."""
        numbers = [each.found[1] for each in self._reports(self._line) if each.pattern is _STALL]
        return self._hangs or any(number in self._stalled for number in numbers)


def fast_clock(text: str, seconds: float) -> str:
    """Return a sentence if the clock of a kernel runs much too fast; empty if not, as far as its messages show.

    Args:
        text: the console's.
        seconds: how long the guest has been booting, at most.
    """
    _, began, boot = text.rpartition(_FIRST_LINE)
    stamps = _STAMP.findall(boot)
    if not began or not stamps or float(stamps[-1]) < 2 * seconds + 60:
        return ""
    return (
        f"Its kernel's clock shows {float(stamps[-1]):.0f} s since the boot, and {seconds:.0f} s have passed: the "
        "kernel measured it wrongly, and all its time limits pass too soon. Boot it again."
    )
