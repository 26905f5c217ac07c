"""Remove what a dead process has left on the engine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import docker.errors

from pytest_virtainers.engine import ownership
from pytest_virtainers.support.paths import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_virtainers.engine.docker.engine import DockerEngine


def sweep(engine: DockerEngine, run_id: str | None) -> list[str]:
    """Remove what dead owners have left, or all that one run owns (see `engine.base.Engine.sweep`).

    Containers end by their lease. They are swept in case the engine was killed together with their owner.
    """
    if run_id is not None:
        return _remove(engine, lambda labels: ownership.run(labels) == run_id)
    with locked("sweep"):
        return _remove(engine, ownership.is_dead)


def _remove(engine: DockerEngine, is_over: Callable[[Mapping[str, str]], bool]) -> list[str]:
    api, ours, removed = engine.api, {"label": [ownership.LABEL]}, []
    with engine.failures("removing what earlier runs left behind"):
        has_detached = False
        for container in engine.containers(ownership.LABEL):
            if not is_over(container.labels) or ownership.is_kept(container):
                has_detached |= container.labels.get(ownership.LABEL) == ownership.DETACHED
            else:
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_container(container.id, force=True, v=True)
                    removed.append(container.name)
        for network in api.networks(filters=ours):
            labels = network.get("Labels") or {}
            if is_over(labels) and not (has_detached and labels[ownership.LABEL] == ownership.DETACHED_NETWORK):
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_network(network["Id"])
                    removed.append(network["Name"])
        for volume in api.volumes(filters=ours)["Volumes"] or ():
            if is_over(volume.get("Labels") or {}):
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_volume(volume["Name"])
                    removed.append(volume["Name"])
    return removed
