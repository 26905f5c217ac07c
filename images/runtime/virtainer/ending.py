"""How a virtainer speaks and ends: every line of its own, and one exit code for each cause.

Standard output belongs to the guest's serial console, so the supervisor speaks on stderr only. Its last
line is always `virtainer: end: <word>: <sentence>`, with a word from `Reason`.
"""

from __future__ import annotations

import os
import select
from enum import Enum


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
    """Write one line to stderr. A reader that stalls loses the line: it must not stall the supervisor."""
    if select.select([], [2], [], 1.0)[1]:
        os.write(2, f"virtainer: {line}\n".encode(errors="replace"))
