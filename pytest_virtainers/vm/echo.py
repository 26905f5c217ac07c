"""Show what commands print while they run, line by line, with the machine's name in front."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Callable


class Echo:
    """One stream of one command; nothing is shown where `show` is None."""

    def __init__(self, name: str, show: Callable[[str], object] | None) -> None:
        self._name, self._show = name, show
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece; show the lines that it completes."""
        if self._show is not None:
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._tell(line)

    def end(self) -> None:
        """Show what is left without an end of line."""
        if self._rest:
            self._tell(self._rest)
            self._rest = b""

    def _tell(self, line: bytes) -> None:
        assert self._show is not None  # noqa: S101  (or else there would be no line)
        self._show(f"{self._name}: {printable(line.decode('utf-8', 'backslashreplace').rstrip())}\n")
