"""How long a VM and its disk stay."""

from __future__ import annotations

from dataclasses import dataclass


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
