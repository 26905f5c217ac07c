"""What a stream has brought: all that was written to it counts, its beginning and its end are kept.

Who writes may be hostile, or just talk a lot: memory and the time of a look do not depend on how much it was.
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
    """The first and the last of a text or of bytes; positions are counted from the very beginning.

    Args:
        empty: `""` or `b""`.
        head: length of the beginning that is kept.
        tail: length of the end that is kept; it may be longer by one piece.
    """

    def __init__(self, empty: AnyStr, *, head: int = HEAD, tail: int = TAIL) -> None:
        self._empty: AnyStr = empty
        self._head: AnyStr = empty
        self._most_head, self._most_tail = head, tail
        self._pieces: deque[AnyStr] = deque()  # all of it, until it is too long; then its end
        self._first = 0  # position of the first piece
        self.size = 0
        """The length of all that was appended."""

    def append(self, piece: AnyStr) -> None:
        """Add a piece to the end."""
        if self._pieces and len(self._pieces[-1]) + len(piece) <= _SMALL:
            self._pieces[-1] += piece  # many small ones would take more room than what is in them
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
        """The length of what is not kept."""
        return self._first - len(self._head)

    def parts(self, position: int = 0) -> Iterator[tuple[int, AnyStr]]:
        """Return what is kept from a position on: each part with its own position, two where something is missing."""
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
        """Return the end from a position on, as far back as nothing is missing in it, and where that begins."""
        *_, last = self.parts(position)
        return last

    def whole(self, mark: Callable[[int], AnyStr]) -> AnyStr:
        """Return all that is kept, with a mark where something is missing; `mark` makes it of how much that is."""
        end = self._empty.join(self._pieces)
        return self._head + (mark(self.missing) if self.missing else self._empty) + end


class Output:
    """One stream of a container, as it arrives; threads may share it."""

    def __init__(self, content: bytes = b"") -> None:
        self._record = Record(b"")
        self._readers: list[Callable[[int, bytes], object]] = []
        self._changed = threading.Condition()
        self.ended = False
        """Whether nothing more will come."""
        self.append(content)

    def append(self, piece: bytes) -> None:
        """Add what has arrived, and hand it to the readers."""
        with self._changed:
            position = self._record.size
            self._record.append(piece)
            for reader in self._readers:
                reader(position, piece)
            self._changed.notify_all()

    def end(self) -> None:
        """Note that nothing more will come."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def follow(self, reader: Callable[[int, bytes], object]) -> None:
        """Hand all that is kept, and each piece that arrives from now on, to `reader`, with its position.

        It is called by the thread that collects, and must not wait. After a position that is not where the piece
        before has ended, something is missing.
        """
        with self._changed:
            for position, part in self._record.parts():
                reader(position, part)
            self._readers.append(reader)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until `condition` holds, at most `seconds` or until the end; return whether it does."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self.ended, seconds)
            return condition()

    @property
    def size(self) -> int:
        """How many bytes have arrived."""
        return self._record.size

    def last(self, size: int) -> bytes:
        """Return the last bytes, at most `size`."""
        with self._changed:
            return self._record.since(max(0, self.size - size))[1]

    def __bytes__(self) -> bytes:
        """Return all that is kept, with a mark where something is missing."""
        with self._changed:
            return self._record.whole(_mark)


def _mark(count: int) -> bytes:
    return f"\n[… {count} bytes not kept …]\n".encode()
