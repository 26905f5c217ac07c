"""How long a VM and its disk stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.support.runtime import protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPARE_SECONDS = 15


@dataclass(frozen=True)
class Tenure:
    """What outlives the program that starts a VM; by default nothing does.

    Attributes:
        detached: the VM does, until somebody removes it.
        auto_remove: a detached one goes when it is switched off.
        folder: the directory of the engine's host in which its disk stays; None: the disk goes with the VM.
    """

    detached: bool = False
    auto_remove: bool = False
    folder: str | None = None


DISPOSABLE = Tenure()


def seconds_to_stop(environment: Mapping[str, str]) -> int:
    """Give the seconds that a container with these variables may take to end by itself after SIGTERM."""
    return int(environment.get("SHUTDOWN_TIMEOUT") or protocol.SHUTDOWN_SECONDS) + _SPARE_SECONDS
