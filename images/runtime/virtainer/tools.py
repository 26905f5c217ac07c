"""Runs the programs that the supervisor needs while it prepares a VM."""

from __future__ import annotations

import subprocess


class ToolError(Exception):
    """A program failed; the text is its last words."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def run(*argv: str, stdin: str = "") -> str:
    """Run a program to its end and return its standard output. Raises ToolError with what it wrote to stderr."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
        raise ToolError(f"{argv[0]} {argv[1]} failed ({done.returncode}): {words[-1]}", done.returncode)
    return done.stdout
