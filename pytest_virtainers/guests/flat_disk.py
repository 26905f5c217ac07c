"""Merge an overlay and its backing disks into one flat disk, in an isolated container.

The overlay comes from a guest or from other people. The container has no network, no capabilities, and of the store
only the disks below the overlay.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_virtainers.engine.plan import Plan
from pytest_virtainers.errors import EngineError, ImageError
from pytest_virtainers.guests.import_disk import DISK
from pytest_virtainers.store.places import path
from pytest_virtainers.support.runtime_modules import protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.store.access import Access

_MEMORY_MIB = 1024


def write(
    engine: Engine,
    access: Access,
    *,
    runtime_image: str,
    run_id: str,
    overlay: Iterator[bytes],
    name: str,
    places: Sequence[str],
    target: Path,
) -> None:
    """Write a flat disk to `target`; other arguments and errors are those of `Disks.flatten`."""
    disk, flat = f"{protocol.IMAGE_DIR}/{protocol.OVERLAY}", f"{protocol.IMAGE_DIR}/flat.qcow2"
    container = _start(engine, access, runtime_image, run_id, places)
    try:
        container.put_archive(protocol.IMAGE_DIR, overlay)
        layers = [f"{path(each)}/{protocol.OVERLAY if each.startswith('templates/') else DISK}" for each in places]
        code, output = container.run(["flatten", disk, *layers, flat])
        if code != 0:
            reason = " ".join(output.decode(errors="replace").split()).removeprefix("flatten: ")
            raise ImageError(reason.replace(disk, name) or f"{name} cannot be converted (exit code {code})")
        receive(container, flat, target)
    finally:
        container.close()


def receive(container: Container, path: str, target: Path) -> None:
    """Copy a file from a container to `target`, atomically.

    The copy is first written to a private folder: another user could have planted a link under a predictable name.
    """
    with TemporaryDirectory(prefix=".virtainer.", dir=target.parent) as private:
        part = Path(private) / "disk"
        container.fetch(path, part)
        part.replace(target)


def _start(engine: Engine, access: Access, runtime_image: str, run_id: str, places: Sequence[str]) -> Container:
    mounting = access.mounting(places)
    while True:
        plan = Plan(
            name=f"virtainers-{run_id}-flatten-{secrets.token_hex(2)}",
            kind="helper",
            image=runtime_image,
            entrypoint=("cat",),  # runs until its stdin, the lease, is closed
            binds=access.binds(places),
            offline=True,
            memory_mib=_MEMORY_MIB,
        )
        try:
            container = engine.create(plan, run_id)
            container.start()
        except EngineError as error:
            if not mounting.should_retry(plan.binds, error):
                raise
        else:
            return container
