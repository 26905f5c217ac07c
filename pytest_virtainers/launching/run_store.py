"""The store of guest images and templates, as one run opens it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_virtainers.store.access import Access
from pytest_virtainers.store.eviction import make_room
from pytest_virtainers.store.manifests import of_store
from pytest_virtainers.store.volume import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.engine.base import Engine
    from pytest_virtainers.launching.runtime_image import RuntimeImage
    from pytest_virtainers.store.volume import OpenStore
    from pytest_virtainers.support.forks import Owner
    from pytest_virtainers.support.progress import Progress


class RunStore:
    """Opens the store for the parts of one run, and keeps it within its limit.

    Args:
        engine: the engine that has the store.
        settings: settings with its location and size limit.
        run_id: id of the run.
        runtime_image: image of the helper containers that work in it.
        owner: the process that may use it.
        progress: where eviction is shown.

    Attributes:
        location: name of its volume, or its absolute directory.
        access: what containers of the run mount of it.
        spared: scratch folders that a failed VM still uses: closing the VM removes them.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        run_id: str,
        *,
        runtime_image: RuntimeImage,
        owner: Owner,
        progress: Progress,
    ) -> None:
        self._engine, self._limit, self._run_id = engine, settings.store_limit, run_id
        self._runtime_image, self._owner, self._progress = runtime_image, owner, progress
        self._manifests = of_store(engine, settings.store)
        self.location = settings.store
        self.access = Access(engine, settings.store, self.open)
        self.spared: set[str] = set()

    @contextmanager
    def open(self) -> Iterator[OpenStore]:
        """Open the store for a block; at its end, evict what exceeds the limit if something was added.

        Raises:
            ImageError: the runtime image cannot be built.
            StoreError: the store cannot be used.
        """
        self._owner.check()
        image = self._runtime_image.reference()
        with open_store(self._engine, self.location, image, self._run_id, remembered=self._manifests) as store:
            store.spared = self.spared
            yield store
            if store.made:
                make_room(store, self._limit, self._progress)

    @contextmanager
    def open_read_only(self) -> Iterator[OpenStore]:
        """Open the store for a block that only reads; raises as `open` does."""
        run_id = f"{self._run_id}-verify"
        image = self._runtime_image.reference()
        with open_store(self._engine, self.location, image, run_id, writable=False) as store:
            yield store
