"""What the guest has written on its serial console."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from pytest_virtainers.engine.output import Record
from pytest_virtainers.errors import EngineError, VirtainerError
from pytest_virtainers.support.deadline import Deadline
from pytest_virtainers.terminal import Plain
from pytest_virtainers.vm.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.engine.base import Container

_CHUNK_BYTES = 4096
_RECENT = 64 * 1024  # characters
_LONGEST_LINE = 1000  # characters of one that an error message shows


class Console:
    """The serial console of one VM, collected from its first byte: of very much, the beginning and the end are kept.

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
        self._kernel = Kernel()
        self._plain, self._text = Plain(), Record("")
        self._arrived = 0  # the position in the container's output up to which it has been looked at
        self._lock = threading.Lock()  # who collects the output adds to it, any thread looks
        self._expected = 0
        container.stdout.follow(self._add)

    def _add(self, position: int, data: bytes) -> None:
        """Look at what has arrived, once."""
        with self._lock:
            if missing := position - self._arrived:
                self._plain = Plain()
                self._text.append(_mark(missing, "bytes"))
            self._kernel.feed(position, data)
            self._text.append(self._plain.feed(data))
            self._arrived = position + len(data)

    @property
    def text(self) -> str:
        """All text so far, without escape sequences and control characters.

        What is between the first million characters and the last four is not kept; a line says how much that was.
        """
        with self._lock:
            return self._text.whole(lambda missing: _mark(missing, "characters"))

    @property
    def position(self) -> int:
        """How many characters of text it has shown so far."""
        return self._text.size

    @property
    def size(self) -> int:
        """How many bytes it has shown so far."""
        return self._arrived

    def recent(self, since: int = 0) -> str:
        """Return the last of the text, at most 64 Ki characters, and no more than was shown since a position."""
        with self._lock:
            return self._text.since(max(since, self._text.size - _RECENT))[1]

    def tail(self, lines: int = 15) -> str:
        """Give the last lines that are not empty, indented for an error message."""
        kept = [line[:_LONGEST_LINE] for line in self.recent().splitlines() if line.strip()][-lines:]
        return "\n".join(f"  | {line}" for line in kept) if kept else "  | (the console is empty)"

    def send(self, text: str) -> None:
        """Type text; a newline is the Enter key. What is shown from here on is what `expect` looks at.

        Raises:
            VMGone, GuestPanic: nobody is there to take the keys.
            EngineError: they were refused.
        """
        __tracebackhide__ = True
        self._check()
        self._expected = self.position
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
            pattern: `^` and `$` are the ends of lines. A match may have 64 Ki characters.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            WaitTimeout: it was not shown in time; the message has the last lines.
            VMGone, GuestPanic: it will not be shown any more.
        """
        __tracebackhide__ = True
        deadline = Deadline(f"{pattern!r} on the console of {self._name}", self._scaled(timeout))
        search = self.search(pattern, self._expected)

        def attempt() -> re.Match[str] | None:
            __tracebackhide__ = True
            deadline.seen = f"\n{self.tail()}"
            try:
                self._check()
            except VirtainerError:
                found = search.look()  # it may be the last that was shown
                if found is None:
                    raise
                return found
            return search.look()

        found = deadline.poll(attempt)
        self._expected = search.end
        return found

    def search(self, pattern: str, since: int = 0) -> Search:
        """Return a search for a regular expression in what is shown from a position on."""
        return Search(self._text, self._lock, re.compile(pattern, re.MULTILINE), since)

    def start_anew(self) -> None:
        """Note that the guest starts anew or goes back in time: what its kernel has met before is over."""
        with self._lock:
            self._kernel.start_anew(self._arrived)

    def panic(self) -> str | None:
        """Give the line with which the guest's Linux kernel panicked in this life; None when it did not."""
        with self._lock:
            return self._kernel.panic()

    def killed_for_memory(self, since: int = 0) -> list[str]:
        """List the kernel's reports of processes that it killed because there was no memory left, in this life.

        Args:
            since: the console's size at that time; 0: from the beginning.
        """
        with self._lock:
            return self._kernel.killed(since)

    def stalled(self) -> bool:
        """Tell whether the guest's Linux kernel hangs: it has reported the same stalled grace period twice."""
        with self._lock:
            return self._kernel.hangs()


class Search:
    """Looks for a regular expression in a text that grows; each look is at what is new, and a bit before.

    Attributes:
        end: the position where the match ends.
        looked_at: how many characters were looked at so far.
    """

    def __init__(self, text: Record[str], lock: threading.Lock, pattern: re.Pattern[str], since: int) -> None:
        self._text, self._lock, self._pattern = text, lock, pattern
        self._since, self._seen = since, -1
        self.end, self.looked_at = since, 0

    def look(self) -> re.Match[str] | None:
        """Return the match, when there is one."""
        with self._lock:
            if self._text.size == self._seen:
                return None
            begin = max(self._since, self._seen - _RECENT)
            parts = list(self._text.parts(max(0, begin - 1)))  # what is before may be the end of a line
            self._seen = self._text.size
        for position, part in parts:
            start = max(0, begin - position)
            self.looked_at += len(part) - start
            if found := self._pattern.search(part, start):
                self.end = position + found.end()
                return found
        return None


def _mark(count: int, unit: str) -> str:
    return f"\n[… {count} {unit} not kept …]\n"
