"""Manifests of a store, remembered on this host for a day.

Reading the store takes a helper container, and most runs would read what the last one has read. What is remembered
may be out of date, so a caller that starts a VM from a place must expect that it was removed or replaced; the engine
and the VM's container notice that. A template's manifest contains keys of its clones, so the files are private.
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

    from pytest_virtainers.engine.base import Engine

_SECONDS = 24 * 60 * 60.0  # reading counts as use for eviction, so the last read must be recent


def of_store(engine: Engine, location: str) -> Manifests:
    """Return the remembered manifests of the store at `location`; a new volume of the same name is another store."""

    def identity() -> str:
        volume = None if location.startswith("/") else engine.volume(location)
        about = [] if volume is None else [volume.folder, volume.created]
        return json.dumps([engine.kind, engine.url, location, *about])

    return Manifests(identity)


class Manifests:
    """The remembered manifests of one store.

    Args:
        identity: returns a text that distinguishes this store from all others.
    """

    def __init__(self, identity: Callable[[], str]) -> None:
        self._identity = identity
        self._prefix = ""

    def get(self, place: str) -> dict[str, Any] | None:
        """Return the manifest of a place if it was remembered within the last day, else `None`."""
        path = self._path(place)
        try:
            if time.time() - path.stat().st_mtime > _SECONDS:
                return None
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, place: str, manifest: dict[str, Any] | None) -> None:
        """Remember a manifest; `None` forgets it."""
        path = self._path(place)
        with contextlib.suppress(OSError):  # then the next run reads the store
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
