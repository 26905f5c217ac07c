"""How long a VM and its disk stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.engine.ownership import DETACHED, LABEL, is_kept
from pytest_virtainers.store.entries import USES
from pytest_virtainers.support.runtime_modules import Variable, protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_virtainers.engine.base import Engine

_SPARE_SECONDS = 15


@dataclass(frozen=True)
class Lifetime:
    """What outlives the program that starts a VM; by default nothing.

    Attributes:
        detached: whether the VM does, until it is removed.
        auto_remove: whether a detached VM is removed when it is switched off.
        folder: directory of the engine's host in which the disk stays; `None`: the disk is removed with the VM.
    """

    detached: bool = False
    auto_remove: bool = False
    folder: str | None = None


DISPOSABLE = Lifetime()


def seconds_to_stop(environment: Mapping[str, str]) -> int:
    """Return the seconds that a container with these variables may take to exit after SIGTERM."""
    return int(environment.get(Variable.SHUTDOWN_TIMEOUT) or protocol.SHUTDOWN_SECONDS) + _SPARE_SECONDS


def is_used_by_detached(engine: Engine, place: str) -> bool:
    """Return whether a detached VM has its disk on a template's, so that the template must stay."""
    return any(is_kept(each) for each in engine.containers(f"{LABEL}={DETACHED}", f"{USES}={place}"))
