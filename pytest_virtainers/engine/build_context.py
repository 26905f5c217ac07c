"""Build contexts: the folders under `images/` as tar streams, and the digests of their content."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pytest_virtainers.engine import tar
from pytest_virtainers.support.paths import build_contexts

if TYPE_CHECKING:
    from pathlib import Path


def digest(name: str) -> str:
    """Return 12 hexadecimal digits that depend on all paths, modes and contents in the context `name`."""
    folder, sha = build_contexts() / name, hashlib.sha256()
    for path in _members(folder):
        content = path.read_bytes()
        sha.update(f"{path.relative_to(folder)}\0{_mode(path):o}\0{len(content)}\0".encode())
        sha.update(content)
    return sha.hexdigest()[:12]


def archive(name: str, into: str = "") -> bytes:
    """Return the context `name` as a tar stream without `tar.END`, each member below the folder `into`."""
    folder = build_contexts() / name
    return b"".join(
        tar.entry(f"{into}{path.relative_to(folder)}", path.read_bytes(), mode=_mode(path))
        for path in _members(folder)
    )


def _members(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _mode(path: Path) -> int:
    """Return 755 or 644, as git does; a wheel or a umask may change the other bits."""
    return 0o755 if path.stat().st_mode & 0o100 else 0o644
