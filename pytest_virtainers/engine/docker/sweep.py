"""Remove what a process that died without a word has left on the engine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import docker.errors

from pytest_virtainers.engine import ownership
from pytest_virtainers.support.paths import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_virtainers.engine.docker.engine import Engine


def sweep(engine: Engine) -> list[str]:
    """Remove containers, then networks and volumes, whose owner is dead; give their names.

    VMs that are kept stay, and with the last of them their network goes. Other containers end by their lease; they
    are swept for the case that their engine itself was killed with them.
    What cannot be removed now is left for the next sweep.
    """
    with locked("sweep"):
        return _remove(engine, ownership.is_dead)


def sweep_run(engine: Engine, run_id: str) -> list[str]:
    """Remove what one run owns, as `sweep` does, whether its process lives or not; give the names."""
    return _remove(engine, lambda labels: ownership.run(labels) == run_id)


def _remove(engine: Engine, is_over: Callable[[Mapping[str, str]], bool]) -> list[str]:
    api, ours, removed = engine.api, {"label": [ownership.LABEL]}, []
    with engine.failures("looking for what earlier runs left behind"):
        has_machines = False
        for container in api.containers(all=True, filters=ours):
            labels = container.get("Labels") or {}
            if not is_over(labels) or ownership.is_kept(container):
                has_machines |= labels.get(ownership.LABEL) == ownership.MACHINE
            else:
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_container(container["Id"], force=True, v=True)
                    removed.append(container["Names"][0].lstrip("/"))
        for network in api.networks(filters=ours):
            labels = network.get("Labels") or {}
            if is_over(labels) and not (has_machines and labels[ownership.LABEL] == ownership.MACHINES_NETWORK):
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_network(network["Id"])
                    removed.append(network["Name"])
        for volume in api.volumes(filters=ours)["Volumes"] or ():
            if is_over(volume.get("Labels") or {}):
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_volume(volume["Name"])
                    removed.append(volume["Name"])
    return removed
