"""What the guest has written on its serial console."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from pytest_virtainers.errors import EngineError, VirtainerError
from pytest_virtainers.handle.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.engine.container import Container

_CHUNK_BYTES = 4096
_CONTROL = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")
_PANIC = re.compile(rb"Kernel panic - not syncing[^\r\n]*")
_KILLED = re.compile(rb"(?:Out of memory|Memory cgroup out of memory): Killed process[^\r\n]*")
# https://docs.kernel.org/RCU/stallwarn.html: reported after 21 s and then each 63 s, with the grace period's number.
_STALL = re.compile(rb"rcu: [^\r\n]*\bg=(-?\d+)")


class Console:
    """The serial console of one VM, collected from its first byte.

    Args:
        container: of the VM.
        name: of the VM, for messages.
        check: raises `VirtainerError` when nothing more will be shown.
        scaled: gives the seconds that something takes here which takes so many with KVM.
    """

    def __init__(
        self,
        container: Container,
        name: str = "vm",
        *,
        check: Callable[[], None] = lambda: None,
        scaled: Callable[[float], float] = float,
    ) -> None:
        self._container = container
        self._name = name
        self._check, self._scaled = check, scaled
        self._life = 0
        self._expected = 0

    @property
    def text(self) -> str:
        """All text so far, without escape sequences and control characters."""
        return _CONTROL.sub("", self._container.stdout.decode("utf-8", "replace").replace("\r\n", "\n"))

    def tail(self, lines: int = 15) -> str:
        """Give the last lines that are not empty, indented for an error message."""
        kept = [line for line in self.text.splitlines() if line.strip()][-lines:]
        return "\n".join(f"  | {line}" for line in kept) if kept else "  | (the console is empty)"

    def send(self, text: str) -> None:
        """Type text; a newline is the Enter key. What is shown from here on is what `expect` looks at.

        Raises:
            VMGone, GuestPanic: nobody is there to take the keys.
            EngineError: they were refused.
        """
        __tracebackhide__ = True
        self._check()
        self._expected = len(self.text)
        stream = self._container.stream(["console", "--type"])
        data = text.encode()
        try:
            while data:
                data = data[stream.send(data) :]
            stream.close_input()
            while stream.recv(_CHUNK_BYTES):  # until it has all been passed on
                pass
        except OSError as error:
            raise EngineError(f"{self._name}: its console took no keys ({error})") from error
        finally:
            stream.close()

    def expect(self, pattern: str, *, timeout: float = 30.0) -> re.Match[str]:
        """Wait until a regular expression is shown after what was sent or expected last; give the match.

        Args:
            pattern: `^` and `$` are the ends of lines.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            WaitTimeout: it was not shown in time; the message has the last lines.
            VMGone, GuestPanic: it will not be shown any more.
        """
        __tracebackhide__ = True
        deadline = Deadline(f"{pattern!r} on the console of {self._name}", self._scaled(timeout))
        expected = re.compile(pattern, re.MULTILINE)

        def attempt() -> re.Match[str] | None:
            __tracebackhide__ = True
            deadline.seen = f"\n{self.tail()}"
            try:
                self._check()
            except VirtainerError:
                found = expected.search(self.text, self._expected)  # it may be the last that was shown
                if found is None:
                    raise
                return found
            return expected.search(self.text, self._expected)

        found = deadline.poll(attempt)
        self._expected = found.end()
        return found

    def start_anew(self) -> None:
        """Note that the guest starts anew or goes back in time: what its kernel has met before is over."""
        self._life = len(self._container.stdout)

    def panic(self) -> str | None:
        """Give the line with which the guest's Linux kernel panicked in this life; None when it did not."""
        found = _PANIC.search(self._container.stdout, self._life)
        return found[0].decode("ascii", "replace") if found else None

    @property
    def size(self) -> int:
        """How many bytes it has shown so far."""
        return len(self._container.stdout)

    def killed_for_memory(self, since: int = 0) -> list[str]:
        """List the kernel's reports of processes that it killed because there was no memory left, in this life.

        Args:
            since: the console's size at that time; 0: from the beginning.
        """
        found = _KILLED.findall(self._container.stdout, max(self._life, since))
        return [each.decode("ascii", "replace") for each in found]

    def stalled(self) -> bool:
        """Tell whether the guest's Linux kernel hangs: it has reported the same stalled grace period twice."""
        reports = Counter(_STALL.findall(self._container.stdout, self._life))
        return any(count > 1 for count in reports.values())
