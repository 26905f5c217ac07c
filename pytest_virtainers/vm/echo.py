"""Show the output of commands while they run, each line after the machine's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Callable


class Echo:
    """One stream of one command; nothing is shown if `show` is `None`."""

    def __init__(self, name: str, show: Callable[[str], object] | None) -> None:
        self._name, self._show = name, show
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Add a piece of output, and show the lines that it completes."""
        if self._show is not None:
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._print(line)

    def end(self) -> None:
        """Show the rest, which has no end of line."""
        if self._rest:
            self._print(self._rest)
            self._rest = b""

    def _print(self, line: bytes) -> None:
        assert self._show is not None  # noqa: S101  (without it, there is no line)
        self._show(f"{self._name}: {printable(line.decode('utf-8', 'backslashreplace').rstrip())}\n")
