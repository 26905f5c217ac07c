"""Bounded records of output: the beginning and the end are kept, and positions count everything.

A hostile or talkative writer costs neither memory nor time: both are independent of how much it writes.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, AnyStr, Generic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MIB = 1024 * 1024
HEAD, TAIL = _MIB, 4 * _MIB
_SMALL = 4096


class Record(Generic[AnyStr]):
    """The beginning and the end of a text or of bytes; positions count from the very beginning.

    Args:
        empty: `""` or `b""`.
        head: length of the beginning to keep.
        tail: length of the end to keep; up to one piece more is kept.
    """

    def __init__(self, empty: AnyStr, *, head: int = HEAD, tail: int = TAIL) -> None:
        self._empty: AnyStr = empty
        self._head: AnyStr = empty
        self._most_head, self._most_tail = head, tail
        self._pieces: deque[AnyStr] = deque()  # everything until it is too long; then its end
        self._first = 0  # position of the first piece
        self.size = 0
        """The length of all that was appended."""

    def append(self, piece: AnyStr) -> None:
        """Add a piece to the end."""
        if self._pieces and len(self._pieces[-1]) + len(piece) <= _SMALL:
            self._pieces[-1] += piece  # many small pieces would take more memory than their content
        elif piece:
            self._pieces.append(piece)
        self.size += len(piece)
        if not self._head and self.size > self._most_head + self._most_tail:
            self._cut_head()
        while self._head and self.size - self._first - len(self._pieces[0]) >= self._most_tail:
            self._first += len(self._pieces.popleft())

    def _cut_head(self) -> None:
        whole = self._empty.join(self._pieces)
        self._head, rest = whole[: self._most_head], whole[self._most_head :]
        self._pieces = deque(rest[at : at + _SMALL] for at in range(0, len(rest), _SMALL))
        self._first = len(self._head)

    @property
    def missing(self) -> int:
        """The length of the part that is not kept."""
        return self._first - len(self._head)

    def parts(self, position: int = 0) -> Iterator[tuple[int, AnyStr]]:
        """Yield what is kept from a position on, each part with its position; two parts if there is a gap."""
        head = self._head[position:]
        if head and self.missing:
            yield position, head
            head = self._empty
        start, taken = self.size, deque[AnyStr]()
        for piece in reversed(self._pieces):
            if start <= position:
                break
            start -= len(piece)
            taken.appendleft(piece)
        cut = max(0, position - start)
        yield start + cut - len(head), head + self._empty.join(taken)[cut:]

    def since(self, position: int) -> tuple[int, AnyStr]:
        """Return the end from a position on, without gaps, after the position at which it begins."""
        *_, last = self.parts(position)
        return last

    def whole(self, mark: Callable[[int], AnyStr]) -> AnyStr:
        """Return everything that is kept; `mark` makes the text for a gap from the gap's length."""
        end = self._empty.join(self._pieces)
        return self._head + (mark(self.missing) if self.missing else self._empty) + end


class Output:
    """One output stream of a container, as it arrives; thread-safe."""

    def __init__(self, content: bytes = b"") -> None:
        self._record = Record(b"")
        self._readers: list[Callable[[int, bytes], object]] = []
        self._changed = threading.Condition()
        self.ended = False
        """Whether nothing more will arrive."""
        self.append(content)

    def append(self, piece: bytes) -> None:
        """Add what has arrived, and pass it to the readers."""
        with self._changed:
            position = self._record.size
            self._record.append(piece)
            for reader in self._readers:
                reader(position, piece)
            self._changed.notify_all()

    def end(self) -> None:
        """Note that nothing more will arrive."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def follow(self, reader: Callable[[int, bytes], object]) -> None:
        """Call `reader` with everything that is kept, and with each piece that arrives from now on.

        Its arguments are a position and a piece. A position after the end of the piece before means a gap. The thread
        that collects the output calls it, so it must not wait.
        """
        with self._changed:
            for position, part in self._record.parts():
                reader(position, part)
            self._readers.append(reader)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until `condition` holds, at most `seconds` or until the end of the stream; return whether it holds."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self.ended, seconds)
            return condition()

    @property
    def size(self) -> int:
        """The number of bytes that have arrived."""
        return self._record.size

    def last(self, size: int) -> bytes:
        """Return the last bytes, at most `size`."""
        with self._changed:
            return self._record.since(max(0, self.size - size))[1]

    def __bytes__(self) -> bytes:
        """Return everything that is kept, with a note where something is missing."""
        with self._changed:
            return self._record.whole(_mark)


def _mark(count: int) -> bytes:
    return f"\n[… {count} bytes not kept …]\n".encode()
