"""Private files and their digests."""

from __future__ import annotations

import hashlib
import os
from typing import IO, TYPE_CHECKING, Any

from pytest_virtainers.support.progress import bar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK_BYTES = 1024 * 1024


def open_private(path: Path, mode: str) -> IO[Any]:
    """Open a file that only this user can read; raise `OSError` if the path is a symbolic link."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600))


def file_digest(path: Path, report: Callable[[str], object], algorithm: str = "sha256") -> str:
    """Return the digest of a file in hex; `report` is called with the progress."""
    found, size = hashlib.new(algorithm), path.stat().st_size
    with path.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            found.update(data)
            report(f"checking {bar(file.tell(), size)}")
    return found.hexdigest()
