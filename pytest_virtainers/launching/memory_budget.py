"""The memory that the VMs of all processes on one engine may take together; a VM that finds none waits.

A VM that boots is counted with all its RAM. A clone shares with its template what it does not change: it is counted
with what its container uses, and with an estimate as long as it is new. The numbers are in labels of the containers,
so all processes on one engine see the same.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_virtainers.engine import ownership
from pytest_virtainers.engine.ownership import LABEL
from pytest_virtainers.errors import BudgetError, SpecError
from pytest_virtainers.store.locks import SharedLocks, is_locked
from pytest_virtainers.support.paths import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Engine
    from pytest_virtainers.engine.facts import ContainerInfo
    from pytest_virtainers.support.progress import Progress

MEMORY = f"{LABEL}.memory-mib"
"""Label with the MiB that a VM's container counts with, at least."""
LIMIT = f"{LABEL}.memory-limit-mib"
"""Label with the MiB that it can use at most."""

QEMU_MIB = 128
"""MiB of QEMU and the supervisor, in addition to the guest's RAM: 60 to 110 MiB were measured under emulation."""
_SHARE_OF_A_CLONE = 8  # of its RAM, an idle clone of 1 GiB makes some 50 MiB its own, a busy one more
_WAITING = "waits-for-memory"
_POLL_SECONDS = 0.5
_TRUST_SECONDS = 30.0
_AT_ONCE = 8


def booted_mib(spec: Spec) -> int:
    """Return the MiB that a VM can take at most; a VM that boots is counted with them."""
    return spec.ram + QEMU_MIB


def cloned_mib(spec: Spec) -> int:
    """Return the MiB that a new clone counts with."""
    return spec.ram // _SHARE_OF_A_CLONE + QEMU_MIB


class Budget:
    """The memory for the VMs of one engine.

    Args:
        engine: the engine that runs the VMs.
        share: returns the budget in MiB for the memory of the engine's host in MiB.
        run_id: id of the run; no other process closes its VMs.
        progress: where waiting is shown.
    """

    def __init__(self, engine: Engine, share: Callable[[int], int], run_id: str, progress: Progress) -> None:
        self._engine = engine
        self._share = share
        self._run_id = run_id
        self._progress = progress
        self._limit_mib: int | None = None
        self._seen: dict[str, tuple[int, float]] = {}  # what containers use, and until when this value is trusted

    def check(self, spec: Spec) -> None:
        """Raise `SpecError` if there can never be memory for a VM."""
        host_mib = self._engine.memory_mib()
        if spec.ram > host_mib:
            raise SpecError(f"{spec.name}: ram={spec.ram}M is more than the engine's host has ({host_mib}M)")
        if booted_mib(spec) > self._limit():
            raise SpecError(
                f"{spec.name}: ram={spec.ram}M and {QEMU_MIB}M for QEMU are more than all VMs together may use "
                f"({self._limit()}M): ask for less, or raise --virtainer-max-ram"
            )

    @contextmanager
    def room(self, spec: Spec, mib: int, *, give_back: Callable[[], bool], patience: float) -> Iterator[None]:
        """Wait until there is memory for a VM that counts with `mib`; create its container inside the block.

        Args:
            spec: spec of the VM.
            mib: its `booted_mib` or `cloned_mib`.
            give_back: frees memory that this process does not need, and returns whether there was any.
            patience: seconds to wait for memory of other processes; 0: fail also if another process waits for memory.

        Raises:
            BudgetError: only this process has the memory, or it did not become free in time.
        """
        deadline = time.monotonic() + patience
        with contextlib.ExitStack() as stack:
            with self._progress.step(f"waiting for memory for {spec.name}") as step, SharedLocks() as waiting:
                while True:
                    if not patience and is_locked(_WAITING):
                        raise BudgetError(f"no memory for {spec.name}: a test of another process waits for memory")
                    with contextlib.ExitStack() as lock:
                        lock.enter_context(locked("memory", step.update))
                        ours, others = self._taken(booted_mib(spec))
                        if ours + others + mib <= self._limit():
                            stack.push(lock.pop_all())
                            break
                    if give_back():
                        continue
                    sums = (
                        f"it needs {mib} MiB, and of {self._limit()} MiB for all VMs, this process's take {ours} MiB "
                        f"and others {others} MiB"
                    )
                    if not others or time.monotonic() >= deadline:
                        waited = f"; waited {patience:.0f} s for those" if others else ""
                        raise BudgetError(
                            f"no memory for {spec.name}: {sums}{waited}. End VMs earlier (scope), ask for less "
                            "(ram), run fewer workers, or raise --virtainer-max-ram"
                        )
                    waiting.add(_WAITING)
                    step.update(sums)
                    time.sleep(_POLL_SECONDS)
            yield

    def _taken(self, most_of_next: int) -> tuple[int, int]:
        """Return the MiB that VMs of this process use, and those that others use."""
        listed = self._engine.containers(MEMORY)
        # Not a detached VM that is switched off, nor a container that has only its image's labels.
        found = [each for each in listed if each.state != "exited" and LIMIT in each.labels]
        labels = {each.id: each.labels for each in found}
        taken = {container: int(each[LIMIT]) for container, each in labels.items()}
        if sum(taken.values()) + most_of_next > self._limit():  # otherwise their real use does not matter
            self._look_at(found)
            taken = {container: self._seen[container][0] for container in labels}
        ours = sum(mib for container, mib in taken.items() if ownership.run(labels[container]) == self._run_id)
        return ours, sum(taken.values()) - ours

    def _look_at(self, containers: Sequence[ContainerInfo]) -> None:
        """Ask what older containers use, and rarely: a remote Docker needs a second for each."""
        now, today = time.monotonic(), time.time()
        least = {each.id: int(each.labels[MEMORY]) for each in containers}
        most = {each.id: int(each.labels[LIMIT]) for each in containers}
        for each in containers:
            if today - each.created < _TRUST_SECONDS:
                self._seen.setdefault(each.id, (least[each.id], now + _TRUST_SECONDS))
        old = [container for container in least if now > self._seen.get(container, (0, 0.0))[1]]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for container, mib in zip(old, threads.map(self._engine.memory_used_mib, old), strict=True):
                # A rootless Podman reports the sum of all processes of its host where cgroups are of version 1.
                believed = min(max(mib, least[container]), most[container])
                self._seen[container] = (believed, now + _TRUST_SECONDS)

    def _limit(self) -> int:
        if self._limit_mib is None:
            self._limit_mib = self._share(self._engine.memory_mib())
        return self._limit_mib
