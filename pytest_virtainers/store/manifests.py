"""What the manifests in a store said, remembered on this machine for a day.

A look at the store takes a helper container, and most runs would only see what the last one saw. What is remembered
may be out of date: whoever starts a VM from it has to expect that its place is gone or has other content, as the
engine and the VM's own container notice. A template's manifest has keys of its clones, so the files are private.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from pytest_virtainers.support.paths import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SECONDS = 24 * 60 * 60.0  # the store evicts by the last look, so that must not be long ago


class Manifests:
    """The remembered manifests of one store.

    Args:
        identity: returns a text by which this store differs from all others.
    """

    def __init__(self, identity: Callable[[], str]) -> None:
        self._identity = identity
        self._prefix = ""

    def get(self, place: str) -> dict[str, Any] | None:
        """Return the manifest of a place as it was within the last day, or `None`."""
        path = self._path(place)
        try:
            if time.time() - path.stat().st_mtime > _SECONDS:
                return None
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, place: str, manifest: dict[str, Any] | None) -> None:
        """Remember a manifest as of now; `None` forgets it."""
        path = self._path(place)
        with contextlib.suppress(OSError):  # the next run looks for itself
            self._remove_old(path.parent)
            if manifest is None:
                path.unlink(missing_ok=True)
                return
            new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            new.touch(mode=0o600, exist_ok=False)
            new.write_text(json.dumps(manifest))
            new.rename(path)

    def _path(self, place: str) -> Path:
        if not self._prefix:
            self._prefix = hashlib.sha256(self._identity().encode()).hexdigest()[:12]
        folder = cache_folder() / "manifests"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{self._prefix}-{place.replace('/', '-')}.json"

    @staticmethod
    def _remove_old(folder: Path) -> None:
        for each in folder.iterdir():
            if time.time() - each.stat().st_mtime > _SECONDS:
                each.unlink(missing_ok=True)
