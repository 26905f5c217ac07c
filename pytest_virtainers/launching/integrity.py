"""Full checks of the store against the digests that were taken when its files were saved.

A bit that flips on a disk or in memory would be in every clone, and no test would notice. Each start of a VM compares
samples (`virtainer.guest_disk.fingerprint`). This module reads everything, by the runtime image's command `verify`:
for `virtainers store verify`, and once in each process in the background, for what this process starts VMs from.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.store.places import MOUNT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from pytest_virtainers.engine.base import Container
    from pytest_virtainers.store.volume import OpenStore

MISSING = "it is missing"
"""The error of a missing file, in the words of the runtime image."""
THREAD = "virtainers-verify"
"""The name of the thread that checks."""
END_SECONDS = 3.0
"""The time that `Watch.close` waits for the thread."""
_DELAY_SECONDS = 5.0  # a process that ends soon need not start a helper


@dataclass(frozen=True)
class Checked:
    """A file of the store that was read.

    Attributes:
        place: its folder: `guests/KEY` or `templates/KEY`.
        file: its name there.
        sha256: its digest now; `None`: it cannot be read.
        was: its digest when it was saved; `None`: none was taken.
        error: why it cannot be read.
    """

    place: str
    file: str
    sha256: str | None
    was: str | None
    error: str = ""

    @property
    def damaged(self) -> bool:
        """Whether it differs from what was saved."""
        return self.sha256 is None or (self.was is not None and self.sha256 != self.was)

    def __str__(self) -> str:
        if self.error:
            return f"{self.place}: {self.file}: {self.error}"
        if self.damaged:
            return f"{self.place}: {self.file} is damaged: its SHA-256 is {self.sha256}, and was {self.was}"
        return f"{self.place}: {self.file}: {'unchanged' if self.was else 'no digest was taken of it'}"


def read(
    container: Container,
    places: Sequence[str],
    *,
    gently: bool = False,
    on_progress: Callable[[], object] = lambda: None,
) -> Iterator[Checked]:
    """Read all files in these places of the store.

    Args:
        container: a helper that has the store.
        places: folders of the store.
        gently: use only processor time that others leave.
        on_progress: called now and then while files are read.

    Raises:
        EngineError: the engine failed.
        VirtainerError: the helper failed.
    """
    words = ["verify", *(["--gently"] if gently else []), *(f"{MOUNT}/{place}" for place in places)]
    code, output = container.run(words, lambda _piece: on_progress())
    if code != 0:
        raise VirtainerError(
            f"reading {', '.join(places)} failed (exit code {code}): {output.decode(errors='replace')}"
        )
    for line in output.splitlines():
        if line.strip():
            row = json.loads(line)
            place = row.pop("folder").removeprefix(f"{MOUNT}/")
            yield Checked(place, **row)


class _Stopped(Exception):
    """The process ends, and with it the check."""


class Watch:
    """Reads in the background, once, all that this process starts VMs from.

    Args:
        store: opens the store for reading.
    """

    def __init__(self, store: Callable[[], AbstractContextManager[OpenStore]]) -> None:
        self._store = store
        self._known: set[tuple[str, str]] = set()
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[Checked] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def want(self, place: str, identity: str) -> None:
        """Read a place, unless this content was read already, or will be.

        Args:
            place: its folder in the store.
            identity: distinguishes its content from other content that replaces it later.
        """
        with self._lock:
            if (place, identity) in self._known or self._stopping.is_set():
                return
            self._known.add((place, identity))
            self._wanted.put(place)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
                self._thread.start()

    def damage(self) -> list[Checked]:
        """Return what was found damaged since the last call."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._found.get_nowait())
        return found

    def stop(self) -> None:
        """Start no further read; one that is running ends soon."""
        self._stopping.set()

    def close(self) -> None:
        """Stop, and wait a moment for the thread."""
        self.stop()
        if (thread := self._thread) is not None:  # it forgets itself when it has read all
            thread.join(END_SECONDS)

    def _work(self) -> None:
        self._stopping.wait(_DELAY_SECONDS)
        # Launches hit the same errors of engine and store, and report them.
        with contextlib.suppress(VirtainerError, _Stopped):
            self._check()
            with self._store() as store:
                while place := self._next():
                    for each in read(store.container, [place], gently=True, on_progress=self._check):
                        if each.damaged and each.error != MISSING:  # another process has removed it
                            self._found.put(each)

    def _next(self) -> str:
        """Return the next place; empty: there is none, and the thread ends."""
        with self._lock:
            self._check()
            try:
                return self._wanted.get_nowait()
            except queue.Empty:
                self._thread = None
                return ""

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Stopped
