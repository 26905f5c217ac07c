"""Runs the programs that the supervisor needs while it prepares a VM."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_SAID_BYTES = 64 * 1024  # the end of a limited program's output
_BASE_SECONDS = 120.0
_BYTES_PER_SECOND = 10 * 10**6  # no disk and no processor is slower
_MEMORY_BYTES = 2 * 2**30
_LEAKS = 3  # exit code of `qemu-img check`: unused clusters, but nothing wrong
_SIGXCPU, _SIGXFSZ = 24, 25


class ToolError(Exception):
    """A program failed; the text is the end of its output."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Stopped(ToolError):
    """A program was stopped at one of its limits; the text says at which."""


class Limits(NamedTuple):
    """The limits of a program that works on an untrusted file."""

    seconds: float
    written_bytes: int
    """The largest file that it may write; its output is a file, too."""
    memory_bytes: int = _MEMORY_BYTES


def limits_for(size: int, written_bytes: int = _SAID_BYTES) -> Limits:
    """Return limits for work on a file of `size` bytes: far above what an honest one needs on a slow machine."""
    return Limits(_BASE_SECONDS + size // _BYTES_PER_SECOND, written_bytes)


def run(*argv: str, stdin: str = "") -> str:
    """Run a program to its end and return its standard output. Raises ToolError with what it wrote to stderr."""
    return start(*argv, stdin=stdin)()


def start(*argv: str, stdin: str = "") -> Callable[[], str]:
    """Start a program; return a function that waits for its end, and returns and raises as `run` does."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace")

    def finish() -> str:
        said, complaint = process.communicate(stdin)
        if process.returncode:
            raise ToolError(
                _last_words(argv, process.returncode, complaint.strip() or said.strip()), process.returncode
            )
        return said

    return finish


def run_limited(*argv: str, limits: Limits, files: tuple[int, ...] = (), user: str | None = None) -> None:
    """Run a program that works on an untrusted file.

    Args:
        argv: the program and its words.
        limits: its limits. Its output goes into memory that counts in `written_bytes`.
        files: descriptors that it inherits, as `/proc/self/fd/N`.
        user: the user to run it as; by default this process's.

    Raises:
        ToolError: it failed.
        Stopped: it was stopped at a limit.
    """
    import resource  # clones do not need it

    def limit() -> None:
        seconds = int(limits.seconds) + 1
        # The second limit is SIGKILL, which would not show the reason.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        for what, most in (
            (resource.RLIMIT_AS, limits.memory_bytes),
            (resource.RLIMIT_FSIZE, limits.written_bytes),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(what, (most, most))

    said = os.memfd_create("said")
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=files,
            # Otherwise each of its threads would reserve address space, which is limited.
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            preexec_fn=limit,  # noqa: PLW1509  (no thread runs here)
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        try:
            code = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Stopped(f"{argv[0]} {argv[1]} was still at work after {limits.seconds:g} s", -9) from None
        except BaseException:
            process.kill()
            raise
        words = os.pread(said, _SAID_BYTES, max(0, os.fstat(said).st_size - _SAID_BYTES)).decode(errors="replace")
    finally:
        os.close(said)
    if -code == _SIGXCPU:
        raise Stopped(f"{argv[0]} {argv[1]} was still at work after {limits.seconds:g} s of processor time", code)
    if -code == _SIGXFSZ:
        raise Stopped(f"{argv[0]} {argv[1]} wrote more than {limits.written_bytes >> 10} KiB", code)
    if code:
        raise ToolError(_last_words(argv, code, words.strip()), code)


def check_disk(file: int, form: str, limits: Limits, user: str | None = None) -> None:
    """Check the tables of a disk. Raises ToolError when they name data that is missing, and Stopped at a limit."""
    try:
        run_limited(
            *("qemu-img", "check", "-q", "-f", form, f"/proc/self/fd/{file}"), limits=limits, files=(file,), user=user
        )
    except ToolError as error:
        if error.code == -_SIGXFSZ:
            raise ToolError("qemu-img check reports more errors than can be shown", error.code) from None
        if error.code != _LEAKS:  # wasted space does no harm
            raise


def _last_words(argv: tuple[str, ...], code: int, said: str) -> str:
    return f"{argv[0]} {argv[1]} failed ({code}): {(said.splitlines() or ['no output'])[-1]}"
