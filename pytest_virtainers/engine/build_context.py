"""Build contexts: folders under `images/` as tar streams, and what identifies their content."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import TYPE_CHECKING

from pytest_virtainers.support.paths import build_contexts

if TYPE_CHECKING:
    from pathlib import Path


def digest(name: str) -> str:
    """Give 12 hexadecimal digits that change with any path, mode or content in the context `name`."""
    folder, sha = build_contexts() / name, hashlib.sha256()
    for path in _members(folder):
        content = path.read_bytes()
        sha.update(f"{path.relative_to(folder)}\0{_mode(path):o}\0{len(content)}\0".encode())
        sha.update(content)
    return sha.hexdigest()[:12]


def archive(name: str, into: str = "", *, goes_on: bool = False) -> bytes:
    """Pack the context `name` as tar, each member under the folder `into`, owned by root, without times.

    With `goes_on` it has no end mark: another tar stream follows.
    """
    folder, packed = build_contexts() / name, io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in _members(folder):
            entry = tarfile.TarInfo(f"{into}{path.relative_to(folder)}")
            entry.size, entry.mode = path.stat().st_size, _mode(path)
            with path.open("rb") as content:
                tar.addfile(entry, content)
        end = tar.offset if goes_on else None
    return packed.getvalue()[:end]


def _members(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _mode(path: Path) -> int:
    """Keep of the mode only whether it is executable, as git does; a wheel or a umask may change the rest."""
    return 0o755 if path.stat().st_mode & 0o100 else 0o644
