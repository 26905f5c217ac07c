"""Isolated bridge networks of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import docker.errors

from pytest_virtainers.engine import owner
from pytest_virtainers.errors import EngineError

if TYPE_CHECKING:
    from pytest_virtainers.engine.client import Engine

_END_SECONDS = 10.0


class Network:
    """A bridge network of its own; with `internet` off it has no way out."""

    def __init__(self, engine: Engine, name: str, run_id: str, *, internet: bool) -> None:
        """Create it; raises `EngineError`."""
        self.name = name
        self._engine = engine
        with engine.failures(f"creating network {name}"):
            engine.api.create_network(
                name,
                driver="bridge",
                internal=not internet,
                check_duplicate=True,
                labels=owner.labels("network", run_id),
            )

    def close(self) -> None:
        """Remove it; containers that are just ending get a moment to let go of it."""
        deadline = time.monotonic() + _END_SECONDS
        while True:
            try:
                self._engine.api.remove_network(self.name)
            except docker.errors.NotFound:
                return
            except docker.errors.APIError as error:
                if time.monotonic() > deadline:
                    raise EngineError(f"network {self.name} was not removed: {error.explanation}") from error
                time.sleep(0.2)
            else:
                return
