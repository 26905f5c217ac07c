"""Copying and reading files of the guest, as root there."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pytest_virtainers.errors import UsageError
from pytest_virtainers.support.progress import bar
from pytest_virtainers.vm import transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.vm.machine import Machine

_GLOB = """
for each in $1; do
    if [ -e "$each" ] || [ -L "$each" ]; then printf '%s\\0' "$each"; fi
done
"""


class Files:
    """Copies, reads and writes files of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def put(self, source: str | Path, dest: str, *, owner: str | None, timeout: float | None) -> str:
        """Copy a local file or tree into the guest, as `VM.put` documents."""
        __tracebackhide__ = True
        with (
            self._machine.log.entry(f"put {source} {dest}", "root"),
            self._counting(f"copying {source} to {self._machine.name}") as shell,
        ):
            return transfer.put(shell, Path(source), dest, owner, timeout)

    def get(self, source: str, dest: str | Path, *, special: bool, timeout: float | None) -> Path:
        """Copy a file or tree out of the guest, as `VM.get` documents."""
        __tracebackhide__ = True
        name = self._machine.name
        with self._machine.log.entry(f"get {source} {dest}", "root") as entry:
            with self._counting(f"copying {source} of {name}") as shell:
                received = transfer.get(shell, source, dest, timeout, special=special)
            if received.skipped:
                entry.outcome = received.skipped
                self._machine.progress.note(f"{name}: get {source}: {received.skipped}")
        return received.path

    def glob(self, pattern: str) -> list[str]:
        """List the paths that match a pattern, as `VM.glob` documents."""
        __tracebackhide__ = True
        if not pattern.startswith("/") or any(each in pattern for each in " \t\n'\"\\$`"):
            raise UsageError(
                f"{pattern!r}: an absolute pattern without blanks, quotes, backslashes, $ and ` is needed"
            )
        found = self._machine.run_as_root(_GLOB, pattern).decode("utf-8", "surrogateescape")
        return [each for each in found.split("\0") if each]

    def read_text(self, path: str, *, timeout: float | None) -> str:
        """Return the content of a file, as `VM.read_text` documents."""
        __tracebackhide__ = True
        return transfer.read(self._machine.root_shell, path, timeout).decode("utf-8", "surrogateescape")

    def write_text(self, path: str, text: str, *, mode: int | None, owner: str | None, timeout: float | None) -> None:
        """Write a file, as `VM.write_text` documents."""
        __tracebackhide__ = True
        content = text.encode("utf-8", "surrogateescape")
        with self._machine.log.entry(f"write {path} ({len(content)} B)", "root"):
            transfer.write(self._machine.root_shell, path, content, mode=mode, owner=owner, timeout=timeout)

    @contextlib.contextmanager
    def _counting(self, title: str) -> Iterator[transfer.RootShell]:
        """Yield a root shell that shows how much has passed through it, once that takes long."""
        moved = 0
        with self._machine.progress.step(title) as step:

            def count(data: bytes) -> bytes:
                nonlocal moved
                moved += len(data)
                return data

            def show() -> None:
                step.update(bar(moved, None))

            def receive(stdout: Callable[[bytes], object], data: bytes) -> None:
                stdout(count(data))
                show()

            def shell(
                script: list[str],
                *,
                stdin: IO[bytes] | None,
                stdout: Callable[[bytes], object],
                timeout: float | None,
            ) -> tuple[int, str]:
                # It is read in another thread, from which nothing must be shown.
                source: Any = stdin and _Counted(stdin, count)
                return self._machine.root_shell(
                    script, stdin=source, stdout=partial(receive, stdout), timeout=timeout, on_poll=show
                )

            yield shell


class _Counted:
    """A file to read from; `count` is called with each piece."""

    def __init__(self, file: IO[bytes], count: Callable[[bytes], bytes]) -> None:
        self._file, self._count = file, count

    def read(self, size: int) -> bytes:
        return self._count(self._file.read(size))
