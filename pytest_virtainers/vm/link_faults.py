"""Faults between VMs on a network: lost frames and slow senders.

The containers of the VMs implement them (`wire`, images/runtime/virtainer/link_faults.py).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.config import parsing
from pytest_virtainers.errors import UsageError, VirtainerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_virtainers.vm.vm import VM

_WHOLE = 1000  # the runtime image has losses in thousandths
_NO_SHAPE = {"rate_kbit": None, "delay_ms": None, "jitter_ms": None}


@dataclass(frozen=True)
class _Loss:
    """The share of frames from `sender` that `receiver` does not get."""

    sender: VM
    receiver: VM
    permille: int


@dataclass(frozen=True)
class _Shape:
    """How slowly `sender` sends."""

    sender: VM
    rate_kbit: int | None
    delay_ms: float | None
    jitter_ms: float | None


@dataclass(frozen=True, eq=False)
class Fault:
    """Losses and slow senders that begin and end together."""

    losses: Sequence[_Loss] = ()
    shapes: Sequence[_Shape] = ()

    @property
    def enforcers(self) -> list[VM]:
        """The VMs whose containers implement it: receivers lose frames, and senders are slow."""
        return [*(loss.receiver for loss in self.losses), *(shape.sender for shape in self.shapes)]

    @property
    def vms(self) -> set[VM]:
        """All VMs that it concerns."""
        return {*self.enforcers, *(loss.sender for loss in self.losses)}


def partition(groups: Sequence[VM | Iterable[VM]]) -> Fault:
    """Return the fault that loses all frames between groups of VMs; raise `UsageError`."""
    sides = [{*group} if isinstance(group, Iterable) else {group} for group in groups]
    if len(sides) < 2 or sum(map(len, sides)) != len(set().union(*sides)):  # noqa: PLR2004
        raise UsageError("partition() needs two or more groups of VMs, and each VM in one of them")
    return Fault(
        losses=[
            _Loss(sender, receiver, _WHOLE)
            for side in sides
            for other in sides
            if other is not side
            for sender in side
            for receiver in other
        ]
    )


def loss(sender: VM, receiver: VM, share: float) -> Fault:
    """Return the fault that loses a share of the frames from one VM to another; raise `UsageError`."""
    permille = round(share * _WHOLE)
    if not 1 <= permille <= _WHOLE:
        raise UsageError(f"share={share}: a share from 0.001 to 1 is needed")
    return Fault(losses=[_Loss(sender, receiver, permille)])


def slowness(vms: Iterable[VM], rate: str | int | None, delay: float | None, jitter: float | None) -> Fault:
    """Return the fault with which VMs send slowly (`rate` in bits a second, times in seconds); raise `UsageError`."""
    if rate is None and delay is None:
        raise UsageError("slow() needs a rate or a delay")
    if (jitter or 0) > (delay or 0):
        raise UsageError(f"jitter={jitter}: it needs a delay that is no less")
    kbit = None if rate is None else max(1, parsing.bits_per_second(rate) // 1000)
    milliseconds = [None if each is None else each * 1000 for each in (delay, jitter)]
    return Fault(shapes=[_Shape(vm, kbit, *milliseconds) for vm in vms])


class LinkFaults:
    """The faults of one network that are in force; they add up.

    Args:
        network: the network's name, for messages.
        macs: the VMs that are on the network now, with the MAC address of their card there.
    """

    def __init__(self, network: str, macs: Mapping[VM, str]) -> None:
        self._network, self._macs = network, macs
        self._lock = threading.RLock()
        self._faults: list[Fault] = []

    def disown(self) -> None:
        """Replace the lock in a forked child: another thread of its parent may have held it."""
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def during(self, fault: Fault) -> Iterator[None]:
        """Keep a fault in force during the block; raise `VirtainerError` if a container cannot implement it."""
        __tracebackhide__ = True
        with self._lock:
            self._faults.append(fault)
            try:
                self._apply([fault])
            except BaseException:
                self._faults.remove(fault)
                with contextlib.suppress(VirtainerError):
                    self._apply([fault])
                raise
        try:
            yield
        except BaseException:  # a failure to undo the fault does not hide this exception
            with contextlib.suppress(VirtainerError):
                self._end(fault)
            raise
        self._end(fault)

    def heal(self) -> None:
        """End all faults, also those of open blocks; raise `VirtainerError` if a container cannot."""
        with self._lock:
            ended, self._faults = self._faults, []
            self._apply(ended)

    def forget(self, vm: VM) -> None:
        """End what concerns a VM that has left: another VM may get its MAC address."""
        with self._lock, contextlib.suppress(VirtainerError):
            self._apply([fault for fault in self._faults if vm in fault.vms])

    def _end(self, fault: Fault) -> None:
        with self._lock:
            if fault in self._faults:  # else `heal` ended it
                self._faults.remove(fault)
                self._apply([fault])

    def _apply(self, changed: Sequence[Fault]) -> None:
        """Send their present faults to the containers that implement these faults."""
        __tracebackhide__ = True
        for vm in dict.fromkeys(vm for fault in changed for vm in fault.enforcers):
            mac = self._macs.get(vm)
            if mac is not None and not vm.machine.container.ended:
                code, said = vm.machine.container.run(["wire", mac, json.dumps(self._wanted(vm))])
                if code != 0:
                    raise VirtainerError(
                        f"{vm.name} on the network {self._network}: {said.decode(errors='replace').strip()}"
                    )

    def _wanted(self, vm: VM) -> Mapping[str, object]:
        drop: dict[str, int] = {}
        shape: dict[str, object] = dict(_NO_SHAPE)
        for fault in self._faults:
            for each in fault.losses:
                mac = self._macs.get(each.sender)
                if each.receiver is vm and mac is not None:
                    drop[mac] = max(each.permille, drop.get(mac, 0))
            for slow in fault.shapes:
                if slow.sender is vm:
                    shape = {"rate_kbit": slow.rate_kbit, "delay_ms": slow.delay_ms, "jitter_ms": slow.jitter_ms}
        return {"drop": drop, **shape}
