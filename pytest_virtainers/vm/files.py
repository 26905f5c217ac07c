"""Files and trees to and from the guest."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pytest_virtainers.errors import UsageError
from pytest_virtainers.support.progress import bar
from pytest_virtainers.vm import transfer
from pytest_virtainers.vm.commands import Commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GLOB = """
for each in $1; do
    if [ -e "$each" ] || [ -L "$each" ]; then printf '%s\\0' "$each"; fi
done
"""


class Files(Commands):
    """The part of the handle that has to do with files. All of it acts as root in the guest."""

    def put(self, source: str | Path, dest: str, *, owner: str | None = None, timeout: float | None = None) -> str:
        """Copy a local file or tree into the guest, as `cp -a SOURCE DEST` would; modes, links and holes are kept.

        Args:
            source: local path.
            dest: path in the guest; folders on the way are made.
            owner: `user` or `user:group`; by default the owner of the folder that it goes into.
            timeout: seconds; None: no limit.

        Returns:
            The path of what was written in the guest.

        Raises:
            FileNotFoundError: `source` is not there.
            TransferError: the copy failed; what was at `dest` before is untouched.
        """
        __tracebackhide__ = True
        with (
            self.log.entry(f"put {source} {dest}", "root"),
            self._counting(f"copying {source} to {self.name}") as shell,
        ):
            return transfer.put(shell, Path(source), dest, owner, timeout)

    def get(self, source: str, dest: str | Path, *, special: bool = False, timeout: float | None = None) -> Path:
        """Copy a file or tree of the guest to here, as `cp -a SOURCE DEST` would; modes, links and holes are kept.

        The guest is not trusted. FIFOs, devices and symbolic links that lead out of the tree are skipped, which the
        command log and the terminal show; setuid and setgid bits are dropped. What is there is merged, and symbolic
        links at or below `dest` are replaced, never followed.

        Args:
            source: path in the guest; a symbolic link is refused.
            dest: local path; folders on the way are made.
            special: copy special files (devices only as root) and all links, and keep setuid and setgid bits.
            timeout: seconds; `None`: no limit.

        Returns:
            The path of what was written here.

        Raises:
            FileNotFoundError: `source` is not there in the guest.
            TransferError: the copy failed.
        """
        __tracebackhide__ = True
        with self.log.entry(f"get {source} {dest}", "root") as entry:
            with self._counting(f"copying {source} of {self.name}") as shell:
                received = transfer.get(shell, source, dest, timeout, special=special)
            if received.skipped:
                entry.outcome = received.skipped
                self._progress.note(f"{self.name}: get {source}: {received.skipped}")
        return received.path

    def glob(self, pattern: str) -> list[str]:
        """List the paths in the guest that match a pattern of its shell (`/var/log/*.log`), in order.

        Raises:
            UsageError: the pattern is not absolute, or has blanks or quotes, which a pattern cannot hold.
        """
        __tracebackhide__ = True
        if not pattern.startswith("/") or any(each in pattern for each in " \t\n'\"\\$`"):
            raise UsageError(
                f"{pattern!r}: an absolute pattern without blanks, quotes, backslashes, $ and ` is needed"
            )
        found = self._as_root(_GLOB, pattern).decode("utf-8", "surrogateescape")
        return [each for each in found.split("\0") if each]

    def read_text(self, path: str, *, timeout: float | None = None) -> str:
        """Give the content of a file of the guest; bytes that are not UTF-8 survive as surrogate escapes.

        Raises:
            FileNotFoundError: it is not there.
        """
        __tracebackhide__ = True
        return transfer.read(self.root_shell, path, timeout).decode("utf-8", "surrogateescape")

    def write_text(
        self,
        path: str,
        text: str,
        *,
        mode: int | None = None,
        owner: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Write a file of the guest in one step (readers see the old or the new content, never a part).

        Args:
            path: in the guest; folders on the way are made, a symbolic link is followed.
            text: written as UTF-8.
            mode: permission bits; by default those of the file that was there, 0644 for a new one.
            owner: `user` or `user:group`; by default the file's former owner, or the owner of its folder.
            timeout: seconds; None: no limit.

        Raises:
            TransferError: it could not be written; what was there before is untouched.
        """
        __tracebackhide__ = True
        content = text.encode("utf-8", "surrogateescape")
        with self.log.entry(f"write {path} ({len(content)} B)", "root"):
            transfer.write(self.root_shell, path, content, mode=mode, owner=owner, timeout=timeout)

    @contextlib.contextmanager
    def _counting(self, title: str) -> Iterator[transfer.RootShell]:
        """Give a root shell that shows how much has gone through it, once that takes long."""
        moved = 0
        with self._progress.step(title) as step:

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
                # It is read in a thread of its own, from which nothing is shown.
                source: Any = stdin and _Counted(stdin, count)
                return self.root_shell(
                    script, stdin=source, stdout=partial(receive, stdout), timeout=timeout, meanwhile=show
                )

            yield shell


class _Counted:
    """As much of a file as is needed to read it, with what is read told to `count`."""

    def __init__(self, file: IO[bytes], count: Callable[[bytes], bytes]) -> None:
        self._file, self._count = file, count

    def read(self, size: int) -> bytes:
        return self._count(self._file.read(size))
