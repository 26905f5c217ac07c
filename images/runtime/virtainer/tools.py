"""Runs the programs that the supervisor needs while it prepares a VM."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class ToolError(Exception):
    """A program failed; the text is its last words."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def run(*argv: str, stdin: str = "") -> str:
    """Run a program to its end and return its standard output. Raises ToolError with what it wrote to stderr."""
    return start(*argv, stdin=stdin)()


def start(*argv: str, stdin: str = "") -> Callable[[], str]:
    """Start a program; what is returned waits for its end, and returns and raises as `run` does."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace")

    def finish() -> str:
        said, complaint = process.communicate(stdin)
        if process.returncode:
            words = (complaint.strip() or said.strip()).splitlines() or ["it said nothing"]
            raise ToolError(f"{argv[0]} {argv[1]} failed ({process.returncode}): {words[-1]}", process.returncode)
        return said

    return finish
