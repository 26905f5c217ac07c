"""The serial console of a guest: its output as text, and input to it."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from pytest_virtainers.engine.output import Record
from pytest_virtainers.errors import EngineError, VirtainerError
from pytest_virtainers.support.polling import Deadline
from pytest_virtainers.terminal import Plain
from pytest_virtainers.vm.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.engine.base import Container

_CHUNK_BYTES = 4096
_RECENT = 64 * 1024  # characters
_LONGEST_LINE = 1000  # characters of one that an error message shows


class Console:
    """The serial console of one VM, recorded from its first byte. Of very long output, only both ends are kept.

    Args:
        container: the VM's container.
        name: the VM's name, for messages.
        check: raises `VirtainerError` if nothing more will be shown.
        scaled: returns how long something may take here that takes so many seconds with KVM.
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
        self._arrived = 0  # the position in the container's output that was read up to
        self._lock = threading.Lock()  # the thread that collects output adds to the text; any thread reads it
        self._expected = 0
        container.stdout.follow(self._add)

    def _add(self, position: int, data: bytes) -> None:
        """Add a piece of output."""
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

        Only the first million characters and the last four million are kept; a line says how many are missing.
        """
        with self._lock:
            return self._text.whole(lambda missing: _mark(missing, "characters"))

    @property
    def position(self) -> int:
        """The number of characters of text so far."""
        return self._text.size

    @property
    def size(self) -> int:
        """The number of bytes so far."""
        return self._arrived

    def recent(self, since: int = 0) -> str:
        """Return the end of the text since a position, at most 64 Ki characters."""
        with self._lock:
            return self._text.since(max(since, self._text.size - _RECENT))[1]

    def tail(self, lines: int = 15) -> str:
        """Return the last lines that are not empty, indented for an error message."""
        kept = [line[:_LONGEST_LINE] for line in self.recent().splitlines() if line.strip()][-lines:]
        return "\n".join(f"  | {line}" for line in kept) if kept else "  | (the console is empty)"

    def send(self, text: str) -> None:
        """Type text; `expect` then matches what is shown from here on.

        Args:
            text: a newline is the Enter key.

        Raises:
            VMGone, GuestPanic: the machine does not run.
            EngineError: the console does not accept input.
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
            while stream.recv(_CHUNK_BYTES):  # until all of it was written
                pass
        except OSError as error:
            raise EngineError(f"{self._name}: its console accepted no input ({error})") from error
        finally:
            stream.close()

    def expect(self, pattern: str, *, timeout: float = 30.0) -> re.Match[str]:
        """Wait until a regular expression is shown after what was sent or expected last; return the match.

        Args:
            pattern: `^` and `$` match at the ends of lines. A match may have 64 Ki characters.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            WaitTimeout: the time passed; the message has the last lines.
            VMGone, GuestPanic: the machine ended before that.
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
                found = search.look()  # in the last output
                if found is None:
                    raise
                return found
            return search.look()

        found = deadline.poll(attempt)
        self._expected = search.end
        return found

    def search(self, pattern: str, since: int = 0) -> Search:
        """Return a search for a regular expression in the text from a position on."""
        return Search(self._text, self._lock, re.compile(pattern, re.MULTILINE), since)

    def forget_reports(self) -> None:
        """Forget the kernel's reports so far: the guest restarts, or is restored."""
        with self._lock:
            self._kernel.forget(self._arrived)

    def panic(self) -> str | None:
        """Return the line with which the guest's Linux kernel panicked since its last start; `None` if it did not."""
        with self._lock:
            return self._kernel.panic()

    def killed_for_memory(self, since: int = 0) -> list[str]:
        """List the kernel's reports of processes that it killed for lack of memory since its last start.

        Args:
            since: a former `size` of the console; 0: all.
        """
        with self._lock:
            return self._kernel.killed(since)

    def clock(self) -> str | None:
        """Return the line that reports that the kernel's clock ran wrongly in this boot; `None` if it did not."""
        with self._lock:
            return self._kernel.clock

    def stalled(self) -> bool:
        """Return whether the guest's Linux kernel hangs: it reported the same stalled grace period twice."""
        with self._lock:
            return self._kernel.hangs()


class Search:
    """A search for a regular expression in a growing text; each look reads what is new, and a bit before it.

    Attributes:
        end: the position at which the match ends.
        looked_at: the number of characters that were searched.
    """

    def __init__(self, text: Record[str], lock: threading.Lock, pattern: re.Pattern[str], since: int) -> None:
        self._text, self._lock, self._pattern = text, lock, pattern
        self._since, self._seen = since, -1
        self.end, self.looked_at = since, 0

    def look(self) -> re.Match[str] | None:
        """Return the match, if there is one."""
        with self._lock:
            if self._text.size == self._seen:
                return None
            begin = max(self._since, self._seen - _RECENT)
            parts = list(self._text.parts(max(0, begin - 1)))  # the character before may end a line
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
