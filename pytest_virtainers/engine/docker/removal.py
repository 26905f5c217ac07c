"""Remove objects from the engine, which may be busy with them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import docker.errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.engine.docker.engine import DockerEngine

_SECONDS = 20.0
_POLL_SECONDS = 0.1
# Something that is just ending uses it, or its removal has begun. Docker says 403 for networks; Podman says 500.
_BUSY = (403, 409, 500)


def remove(engine: DockerEngine, what: str, call: Callable[[], object]) -> None:
    """Call until the object is removed, or was removed by others; raise `EngineError` if it is busy for 20 s."""
    deadline = time.monotonic() + _SECONDS
    while True:
        with engine.failures(f"removing {what}"):
            try:
                call()
            except docker.errors.NotFound:
                return
            except docker.errors.APIError as error:
                if error.status_code not in _BUSY or time.monotonic() > deadline:
                    raise
            else:
                return
        time.sleep(_POLL_SECONDS)
