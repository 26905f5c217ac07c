"""Remove what processes that died without a word have left on the engine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import docker.errors

from pytest_virtainers.engine import owner
from pytest_virtainers.paths import locked

if TYPE_CHECKING:
    from pytest_virtainers.engine.client import Engine


def sweep(engine: Engine) -> list[str]:
    """Remove containers, then networks and volumes, whose owner is dead; give their names.

    Containers end by their lease; they are swept for the case that their engine itself was killed with them.
    What cannot be removed now is left for the next sweep.
    """
    api, ours, removed = engine.api, {"label": [owner.LABEL]}, []
    with locked("sweep"), engine.failures("looking for what earlier runs left behind"):
        for container in api.containers(all=True, filters=ours):
            if owner.is_dead(container.get("Labels") or {}):
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_container(container["Id"], force=True, v=True)
                    removed.append(container["Names"][0].lstrip("/"))
        for network in api.networks(filters=ours):
            if owner.is_dead(network.get("Labels") or {}):
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_network(network["Id"])
                    removed.append(network["Name"])
        for volume in api.volumes(filters=ours)["Volumes"] or ():
            if owner.is_dead(volume.get("Labels") or {}):
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_volume(volume["Name"])
                    removed.append(volume["Name"])
    return removed
