"""Disks of VMs without a running container: opened in a helper container, or written as one flat file."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

from pytest_virtainers.engine.plan import Bind, Plan
from pytest_virtainers.guests import flat_disk
from pytest_virtainers.support.runtime_modules import protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.launching.runtime_image import RuntimeImage
    from pytest_virtainers.store.access import Access
    from pytest_virtainers.vm.vm import VM


class Disks:
    """Opens the disks of one run's VMs in helper containers.

    Args:
        engine: the engine that has the disks.
        run_id: id of the run.
        runtime_image: image of the helpers.
        access: what they mount of the store.
    """

    def __init__(self, engine: Engine, run_id: str, *, runtime_image: RuntimeImage, access: Access) -> None:
        self._engine, self._run_id = engine, run_id
        self._runtime_image, self._access = runtime_image, access

    @contextlib.contextmanager
    def open(self, vm: VM) -> Iterator[Container]:
        """Open a container with the disk of a VM whose own container no longer exists; raises `EngineError`."""
        volume = vm.machine.volume
        disk = () if volume is None else (Bind(protocol.IMAGE_DIR, volume, writable=True),)
        plan = Plan(
            name=f"virtainers-{self._run_id}-rescue-{secrets.token_hex(2)}",
            kind="helper",
            image=self._runtime_image.reference(),
            entrypoint=("cat",),
            environment=vm.machine.container.environment,  # it says where disk and seed are
            binds=(*vm.machine.container.binds, *disk),
            offline=True,
        )
        container = self._engine.create(plan, self._run_id)
        try:
            container.start()
            yield container
        finally:
            container.close()

    def flatten(self, overlay: Iterator[bytes], name: str, places: Sequence[str], target: Path) -> None:
        """Write a disk as one flat qcow2 file of this host.

        Args:
            overlay: a tar stream with the disk's uppermost layer, `local_image.qcow2`.
            name: its name in messages.
            places: places in the store of the layers below, the lowest last.
            target: path of the file.

        Raises:
            ImageError: the disk cannot be converted.
            EngineError: the engine failed.
        """
        flat_disk.write(
            self._engine,
            self._access,
            runtime_image=self._runtime_image.reference(),
            run_id=self._run_id,
            overlay=overlay,
            name=name,
            places=places,
            target=target,
        )
