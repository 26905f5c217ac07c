"""What the guest has written on its serial console."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_virtainers.engine.container import Container

_CONTROL = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")
_PANIC = re.compile(rb"Kernel panic - not syncing[^\r\n]*")
# https://docs.kernel.org/RCU/stallwarn.html: reported after 21 s and then each 63 s, with the grace period's number.
_STALL = re.compile(rb"rcu: [^\r\n]*\bg=(-?\d+)")


class Console:
    """The serial console of one VM, collected from its first byte."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._life = 0

    @property
    def text(self) -> str:
        """All text so far, without escape sequences and control characters."""
        return _CONTROL.sub("", self._container.stdout.decode("utf-8", "replace").replace("\r\n", "\n"))

    def tail(self, lines: int = 15) -> str:
        """Give the last lines that are not empty, indented for an error message."""
        kept = [line for line in self.text.splitlines() if line.strip()][-lines:]
        return "\n".join(f"  | {line}" for line in kept) if kept else "  | (the console is empty)"

    def start_anew(self) -> None:
        """Note that the guest starts anew or goes back in time: what its kernel has met before is over."""
        self._life = len(self._container.stdout)

    def panic(self) -> str | None:
        """Give the line with which the guest's Linux kernel panicked in this life; None when it did not."""
        found = _PANIC.search(self._container.stdout, self._life)
        return found[0].decode("ascii", "replace") if found else None

    def stalled(self) -> bool:
        """Tell whether the guest's Linux kernel hangs: it has reported the same stalled grace period twice."""
        reports = Counter(_STALL.findall(self._container.stdout, self._life))
        return any(count > 1 for count in reports.values())
