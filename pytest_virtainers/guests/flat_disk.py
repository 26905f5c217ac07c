"""Convert an overlay and the layers below it to one flat disk, in a container that reaches nothing else.

The overlay comes from a guest or from other people. The container has no network, no capabilities, and of the store
only the layers below the overlay.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_virtainers.engine.plan import DISK_FOLDER, Plan
from pytest_virtainers.errors import EngineError, StoreError
from pytest_virtainers.guests.disk_format import DISK
from pytest_virtainers.store.places import path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.store.access import Access

LAYER = "local_image.qcow2"
"""The file name of the overlay of a VM or template."""
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
    """Write a flat disk to `target`; arguments and errors are those of `Manager.flatten`."""
    container = _start(engine, access, runtime_image, run_id, places)
    try:
        container.put_archive(DISK_FOLDER, overlay)
        layers = [f"{path(each)}/{LAYER if each.startswith('templates/') else DISK}" for each in places]
        code, said = container.run(["flatten", f"{DISK_FOLDER}/{LAYER}", *layers, f"{DISK_FOLDER}/flat.qcow2"])
        if code != 0:
            why = " ".join(said.decode(errors="replace").split()).removeprefix("flatten: ")
            raise StoreError(
                why.replace(f"{DISK_FOLDER}/{LAYER}", name) or f"{name} cannot be converted (exit code {code})"
            )
        receive(container, f"{DISK_FOLDER}/flat.qcow2", target)
    finally:
        container.close()


def receive(container: Container, path: str, target: Path) -> None:
    """Copy a file out of a container to `target`, which is replaced at once or not at all.

    Another user of the folder could plant a link under a name that can be guessed, so the copy is made in a private
    folder.
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
