"""The result of a command in the guest."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_virtainers.terminal import printable

_SHOWN_CHARACTERS, _SHOWN_LINES = 4000, 40


@dataclass(frozen=True)
class Result:
    """The result of a command; it is true if the exit code is 0.

    Attributes:
        command: the command, as one line.
        exit_code: 0 to 255; -1 if a signal or a timeout ended it.
        stdout_bytes: standard output, unchanged.
        stderr_bytes: standard error, unchanged.
        duration: wall time in seconds, measured by the test.
    """

    command: str
    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    duration: float

    @property
    def ok(self) -> bool:
        """Whether the exit code was 0."""
        return self.exit_code == 0

    @property
    def stdout(self) -> str:
        """Standard output as UTF-8; other bytes are kept as surrogate escapes (PEP 383)."""
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self) -> str:
        """Standard error as UTF-8; other bytes are kept as surrogate escapes (PEP 383)."""
        return self.stderr_bytes.decode("utf-8", "surrogateescape")

    def __bool__(self) -> bool:
        return self.ok

    def streams(self) -> str:
        """Return both streams as printable text; the middle of a long one is left out."""
        return "\n".join(
            f"--- {name} ({len(data)} bytes)\n{_shorten(data)}".rstrip()
            for name, data in (("stdout", self.stdout_bytes), ("stderr", self.stderr_bytes))
        )


def _shorten(data: bytes) -> str:
    text = data.decode("utf-8", "backslashreplace")
    head, tail = text[: len(text) // 2], text[len(text) // 2 :]
    head = "".join(head.splitlines(keepends=True)[: _SHOWN_LINES // 2])[: _SHOWN_CHARACTERS // 2]
    tail = "".join(tail.splitlines(keepends=True)[-_SHOWN_LINES // 2 :])[-_SHOWN_CHARACTERS // 2 :]
    left_out = len(text) - len(head) - len(tail)
    return printable(f"{head}\n[… {left_out} characters left out …]\n{tail}" if left_out else text)
