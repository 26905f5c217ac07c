"""Output of a guest up to a limit: a guest that floods must not fill this process's memory."""

from __future__ import annotations

import reprlib

from pytest_virtainers.errors import OutputTooLarge

COMMAND_MIB = 1024
"""Limit for each stream of a test's command."""
_MIB = 1024 * 1024


class TooMuch(Exception):
    """The guest sent more than the limit."""


class Limited:
    """Collects output; raises `TooMuch` once it is longer than `limit` bytes, which ends the command.

    Attributes:
        data: the output so far, at most `limit` bytes.
    """

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit

    def __call__(self, data: bytes) -> None:
        """Add the next piece."""
        room = self._limit - len(self.data)
        self.data += data[:room]
        if len(data) > room:
            raise TooMuch


class Collected(bytearray):
    """All output of a stream, up to a limit.

    Args:
        what: the name of the stream, the subject of the error message.
        limit: MiB.
        remedy: a sentence with what to do instead, or empty.
    """

    def __init__(self, what: str, limit: int, remedy: str = "") -> None:
        super().__init__()
        self._what, self._limit, self._remedy = what, limit, remedy

    def take(self, data: bytes) -> None:
        """Add the next piece; raise `OutputTooLarge` if the limit is exceeded."""
        if len(self) + len(data) > self._limit * _MIB:
            raise OutputTooLarge(f"{self._what} has more than {self._limit} MiB. {self._remedy}".rstrip())
        self.extend(data)


def outputs(command: str, vm_name: str) -> tuple[Collected, Collected]:
    """Return collectors for a command's standard output and standard error."""
    of = f"of {reprlib.repr(command)} on {vm_name}"
    remedy = "Let it write into a file of the guest, and copy that with get()."
    return (
        Collected(f"standard output {of}", COMMAND_MIB, remedy),
        Collected(f"standard error {of}", COMMAND_MIB, remedy),
    )
