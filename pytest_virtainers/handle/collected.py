"""What a guest prints, as far as it is kept in memory: bounded, since a hostile guest may print without end."""

from __future__ import annotations

import reprlib

from pytest_virtainers.errors import TransferError

COMMAND_MIB = 1024
"""Limit for a stream of a command of the test, and for a file that is read into memory."""
SCRIPT_MIB = 64
"""Limit for a script of our own."""
_MIB = 1024 * 1024
_WORDS_BYTES = 64 * 1024


class Collected(bytearray):
    """A stream that is kept whole, up to a limit.

    Args:
        what: names the stream in the message, as its subject.
        limit: MiB.
        remedy: what to do instead, as a sentence; empty when there is nothing.
    """

    def __init__(self, what: str, limit: int, remedy: str = "") -> None:
        super().__init__()
        self._what, self._limit, self._remedy = what, limit, remedy

    def take(self, data: bytes) -> None:
        """Keep the next piece; raise `TransferError` when the limit is exceeded."""
        if len(self) + len(data) > self._limit * _MIB:
            raise TransferError(f"{self._what} has more than {self._limit} MiB. {self._remedy}".rstrip())
        self.extend(data)


def outputs(command: str, vm_name: str) -> tuple[Collected, Collected]:
    """Make the collectors of a command's standard output and standard error."""
    of = f"of {reprlib.repr(command)} on {vm_name}"
    remedy = "Let it write into a file of the guest, and copy that with get()."
    return (
        Collected(f"standard output {of}", COMMAND_MIB, remedy),
        Collected(f"standard error {of}", COMMAND_MIB, remedy),
    )


class LastWords(bytearray):
    """The end of a stream, for a message."""

    def take(self, data: bytes) -> None:
        """Keep the next piece, and drop what came long before it."""
        self.extend(data)
        if len(self) > 2 * _WORDS_BYTES:
            del self[:-_WORDS_BYTES]
