"""Mounts with which a container sees single places of the store, and nothing else of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.engine.plan import Bind
from pytest_virtainers.errors import EngineError, StoreError
from pytest_virtainers.store.places import MOUNT, path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from pytest_virtainers.engine.base import Engine
    from pytest_virtainers.store.volume import OpenStore

# Engines mount deeper paths later; the second is a link to the first (images/runtime/Dockerfile).
_KEPT, _OVER_KEPT = "/kept", "/usr/lib/virtainer/kept"


class Removed(StoreError):
    """A place from which a container was to be started is no longer in the store."""


class Access:
    """The mounts of one run's containers.

    Args:
        engine: the engine with the store.
        location: the store's volume name or absolute directory.
        open_store: opens the store.
    """

    def __init__(
        self, engine: Engine, location: str, open_store: Callable[[], AbstractContextManager[OpenStore]]
    ) -> None:
        self._engine, self._location, self._open = engine, location, open_store
        self._root: str | None = None
        self._whole = False

    def binds(
        self, places: Collection[str], *, scratch: str | None = None, lasting: bool = False
    ) -> tuple[Bind, ...]:
        """Return the mounts of a container.

        A volume whose files are not in a directory of the engine's host is mounted whole, because engines before
        Docker 26 cannot mount a part of it.

        Args:
            places: places that the container reads.
            scratch: path of a scratch folder that it fills.
            lasting: it outlives this process. Then the volume itself is mounted too, so that the engine knows that it
                is in use, and does not prune it.

        Raises:
            StoreError: one of the places is not a place in a store.
            EngineError: the engine failed.
        """
        paths = [path(each) for each in places]
        root = "" if self._whole else self._find_root()
        if not root:
            return (Bind(MOUNT, self._location, writable=scratch is not None),)
        reads = (Bind(each, f"{root}{each.removeprefix(MOUNT)}") for each in paths)
        fills = () if scratch is None else (Bind(scratch, f"{root}{scratch.removeprefix(MOUNT)}", writable=True),)
        keeps = () if self._location.startswith("/") or not lasting else self._kept(root, paths[0])
        return (*reads, *fills, *keeps)

    def _kept(self, root: str, path: str) -> tuple[Bind, ...]:
        """Return a mount of the volume, and another one that covers it, so that the container cannot see it."""
        return (Bind(_KEPT, self._location), Bind(_OVER_KEPT, f"{root}{path.removeprefix(MOUNT)}"))

    def mounting(self, places: Collection[str]) -> Mounting:
        """Return the decision about retries for one container with these places."""
        return Mounting(self, places)

    def is_stored(self, place: str) -> bool:
        """Return whether a place is in the store; raise `StoreError`."""
        with self._open() as store:
            return store.manifest(place) is not None

    def mount_whole(self) -> bool:
        """Mount the whole store from now on; return whether that is a change."""
        if self._whole or self._location.startswith("/"):
            return False
        self._whole = True
        return True

    def _find_root(self) -> str:
        """Return the directory of the engine's host with the store; empty if none is known."""
        if self._location.startswith("/"):
            return self._location.rstrip("/")
        if self._root is None:
            volume = self._engine.volume(self._location)
            if volume is None:
                return ""
            self._root = volume.folder
        return self._root


class Mounting:
    """Decides whether to try again when an engine could not mount a container's places."""

    def __init__(self, access: Access, places: Collection[str]) -> None:
        self._access, self._places = access, places
        self._tried_again = False

    def should_retry(self, binds: Collection[Bind], error: EngineError) -> bool:
        """Return whether to try again after this error of a container with these mounts.

        A place may just have been removed and made again. An engine may also refuse to mount directories of its own
        volumes; then containers get the whole volume.

        Raises:
            Removed: one of the places is not there any more.
        """
        if not any(each.is_folder and each.source in str(error) for each in binds):
            return False
        for place in self._places:
            if not self._access.is_stored(place):
                raise Removed(f"{place} is no longer in the store: it was just removed") from error
        if not self._tried_again:
            self._tried_again = True
            return True
        return self._access.mount_whole()
