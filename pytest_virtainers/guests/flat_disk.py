"""One flat disk of an overlay and what it is made on: converted in a container that reaches nothing else.

The overlay comes from a guest, or from strangers. The container has no network, no capabilities and nothing of the
store but the layers below the overlay.
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
"""What the overlay of a VM, and that of a template, is called in its folder."""
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
    """Write a flat disk to `target`; the arguments, and what it raises, are those of `Manager.flatten`."""
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
    """Copy a file of a container to `target`, which is whole or as it was.

    A name that another user of the folder could guess may be a link that is planted there, so none is written to.
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
            entrypoint=("cat",),  # lives as long as its stdin, which is the lease
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
