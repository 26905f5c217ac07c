"""What a guest says, up to a number of bytes: a guest that floods must not fill this process's memory."""

from __future__ import annotations


class TooMuch(Exception):
    """The guest has said more than the limit."""


class Limited:
    """Collects output; raises `TooMuch` once it is longer than `limit` bytes, which ends the command.

    Attributes:
        data: what has come, at most `limit` bytes.
    """

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit

    def __call__(self, data: bytes) -> None:
        """Take the next piece."""
        room = self._limit - len(self.data)
        self.data += data[:room]
        if len(data) > room:
            raise TooMuch
