"""How a virtainer speaks and ends: every line of its own, and one exit code for each cause.

Standard output belongs to the guest's serial console, so the supervisor speaks on stderr only. Its last
line is always `virtainer: end: <word>: <sentence>`, with a word from `Reason`.
"""

from __future__ import annotations

import os
import select
import time
from enum import Enum

# What is written at once into a pipe, at most (PIPE_BUF): a longer line could be torn by that of another thread.
_LONGEST = 4000


class Reason(Enum):
    """Why a virtainer ended: the word in its last line, and the container's exit code."""

    POWERED_OFF = ("powered-off", 0)  # the guest switched itself off
    STOPPED = ("stopped", 0)  # SIGTERM or SIGINT, and the guest shut down in time
    QUIT = ("quit", 0)  # somebody told QEMU to quit through QMP
    KILLED = ("killed", 2)  # the guest outlived the grace time, or a second SIGTERM came
    LEASE = ("lease-gone", 3)  # the holder of the container's stdin is gone
    SETTING = ("bad-setting", 10)
    IMAGE = ("bad-image", 11)
    SEED = ("bad-seed", 12)
    STORAGE = ("storage", 13)  # IMAGE_DIR is full, read-only, or holds another guest's overlay
    PRIVILEGE = ("privilege", 14)  # a capability, device or sysctl is missing
    NETWORK = ("network", 15)
    QEMU = ("qemu-failed", 16)
    TEMPLATE = ("bad-template", 17)  # it does not restore here
    INTERNAL = ("internal-error", 70)

    @property
    def word(self) -> str:
        """The word in the last line on stderr."""
        return self.value[0]

    @property
    def code(self) -> int:
        """The container's exit code."""
        return self.value[1]


class End(Exception):
    """The virtainer ends now, for this reason; the text is one sentence for people."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason

    @property
    def line(self) -> str:
        """The last line on stderr, without its `virtainer: ` prefix. One line, whatever the cause said."""
        return f"end: {self.reason.word}: {' '.join(str(self).split())}"


def say(line: str) -> None:
    """Write one line to stderr. A reader that stalls loses the line: it must not stall the supervisor.

    Whatever a line quotes, it stays one line without control characters, and no other thread's line is mixed with it.
    """
    text = f"virtainer: {escaped(line)}".encode(errors="replace")
    if select.select([], [2], [], 1.0)[1]:
        os.write(2, text[:_LONGEST] + b"\n")


def escaped(text: str) -> str:
    """Return a text with what is not printable written as Python does."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class Sparing:
    """Says what a guest can cause as often as it likes: a few lines at once, and then so many a second.

    Args:
        what: such lines are, for the line that says that some are not shown.
        at_once: lines.
        a_second: lines; 0: there are no more.
    """

    def __init__(self, what: str, at_once: int, a_second: float) -> None:
        self._what, self._at_once, self._a_second = what, at_once, a_second
        self._left, self._since, self._hides = float(at_once), time.monotonic(), False

    def say(self, line: str) -> None:
        """Say a line, unless there were too many."""
        now = time.monotonic()
        self._left = min(self._at_once, self._left + (now - self._since) * self._a_second)
        self._since = now
        if self._left >= 1:
            self._left, self._hides = self._left - 1, False
            say(line)
        elif not self._hides:
            self._hides = True
            say(f"{self._what}: too many lines, further ones are not shown")
