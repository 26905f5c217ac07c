"""A network of VMs as a test sees it: faults between them, and what was on the wire."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.config import parsing
from pytest_virtainers.config.network_spec import DEFAULT
from pytest_virtainers.engine.plan import Port
from pytest_virtainers.errors import SpecError, VirtainerError
from pytest_virtainers.support.forks import Owner, disown_in_child
from pytest_virtainers.vm.capture import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from ipaddress import IPv4Network

    from pytest_virtainers.config.network_spec import NetworkSpec
    from pytest_virtainers.engine.base import Network as EngineNetwork
    from pytest_virtainers.vm.core import Core

_WHOLE = 1000  # the runtime counts losses in thousandths
_NO_SHAPE = {"rate_kbit": None, "delay_ms": None, "jitter_ms": None}


@dataclass(frozen=True)
class _Loss:
    """What `receiver` does not get of `sender`."""

    sender: Core
    receiver: Core
    permille: int


@dataclass(frozen=True)
class _Shape:
    """How `sender` is slowed down."""

    sender: Core
    rate_kbit: int | None
    delay_ms: float | None
    jitter_ms: float | None


@dataclass(eq=False)
class _Fault:
    losses: list[_Loss] = field(default_factory=list)
    shapes: list[_Shape] = field(default_factory=list)


class Network:
    """A network and the VMs that are on it.

    Attributes:
        spec: what it was asked to be.
        name: by which markers call it.
        engine_name: the engine's name for it.
        subnet: its IPv4 addresses; None: the engine does not know them.
        ipv6: whether it has IPv6, too.
        has_host: whether the engine's host is on it.
        is_wire: whether the VMs' frames are hidden from that one's firewall (images/runtime/virtainer/joined.py).
        recorder: captures all that is on it, for the evidence of failing tests; None: that is not wanted.
    """

    def __init__(self, spec: NetworkSpec, made: EngineNetwork, *, recorded: bool = False) -> None:
        self.spec = spec
        self.name = spec.name
        self.engine_name = made.name
        self.subnet: IPv4Network | None = made.subnet
        self.ipv6, self.has_host = made.ipv6, made.driver == "bridge"
        self.is_wire = spec.mode == "wire"
        self._made = made
        self._lock = threading.RLock()
        self._owner = Owner(f"the network {spec.name}", "Use a thread.")
        self._macs: dict[Core, str] = {}
        self._faults: list[_Fault] = []
        self._captures: list[Capture] = []
        self.recorder = self.record() if recorded else None
        disown_in_child(self)

    def __repr__(self) -> str:
        return f"<Network {self.name} ({self.spec.mode}, {self.subnet})>"

    @property
    def label(self) -> str:
        """Its name; that of the default network without a way out is told from that of the other one."""
        return f"{self.name}-isolated" if self.spec == DEFAULT.of_first_card(internet=False) else self.name

    @property
    def vms(self) -> tuple[Core, ...]:
        """The VMs that are on it now."""
        with self._lock:
            return tuple(self._macs)

    def close(self) -> None:
        """Remove it from the engine, if it is ours; raises `EngineError`. A forked child has none to remove."""
        if not self._owner.is_here:
            return
        if self.recorder is not None:
            self.recorder.close()
        self._made.close()

    def renewed(self) -> Network:
        """Return the same network of the engine, without VMs, faults and captures, for others to use."""
        return Network(self.spec, self._made)

    def disown(self) -> None:
        """Leave all that is on it to a forked child's parent."""
        self._lock = threading.RLock()

    # Who is on it

    def port(self, name: str, ip: str | int | IPv4Address | None, *, first: bool = False) -> Port:
        """Say how a container called `name` is connected.

        Others find it as `name.network`. Only on its first network they do so as `name`, too: Podman gives all
        addresses of a name, and the one that others must use would be one of them.

        Args:
            name: of the VM.
            first: whether it is its first network.
            ip: its address, or that one's number in the subnet; anything else: the engine's choice.

        Raises:
            SpecError: the subnet has no such address.
        """
        address = self._address(ip) if isinstance(ip, int) else ip
        if isinstance(address, IPv4Address) and self.subnet is not None and address not in self.subnet:
            raise SpecError(f"{name}: ip={ip}: it is not in the subnet {self.subnet} of the network {self.name}")
        fixed = str(address) if isinstance(address, IPv4Address) else None
        return Port(self.engine_name, (*((name,) if first else ()), f"{name}.{self.name}"), fixed)

    def _address(self, number: int) -> IPv4Address:
        if self.subnet is None or number >= self.subnet.num_addresses - 1:
            raise SpecError(f"ip={number}: the subnet {self.subnet} of the network {self.name} has no such address")
        return self.subnet[number]

    def join(self, vm: Core, mac: str) -> None:
        """Note that a VM has a card here, with this address on the wire."""
        with self._lock:
            for capture in self._captures:
                capture.add(vm, mac)
            self._macs[vm] = mac
            vm.ends_with_it.callback(self.leave, vm)

    def leave(self, vm: Core) -> None:
        """Note that it has none any more."""
        with self._lock:
            mac = self._macs.pop(vm, None)
            if mac is None:
                return
            if self.recorder is not None:
                self.recorder.forget(mac)
            with contextlib.suppress(VirtainerError):  # another VM may get its address on the wire
                self._apply([fault for fault in self._faults if vm in _concerned(fault)])

    # Faults

    @contextlib.contextmanager
    def partition(self, *groups: Core | Iterable[Core]) -> Iterator[None]:
        """Let nothing through between VMs of different groups during the block; of others, all gets through.

        It is as if a switch between them were off: frames of any protocol are lost, in both directions. The test
        itself still reaches all of them.

        Raises:
            ValueError: there is only one group, or a VM is in two, or has no card on this network.
            VirtainerError: the container cannot do it.
        """
        __tracebackhide__ = True
        sides = [{*group} if isinstance(group, Iterable) else {group} for group in groups]
        if len(sides) < 2 or sum(map(len, sides)) != len(set().union(*sides)):  # noqa: PLR2004
            raise ValueError("partition() needs two or more groups of VMs, and each VM in one of them")
        losses = [
            _Loss(sender, receiver, _WHOLE)
            for side in sides
            for other in sides
            if other is not side
            for sender in side
            for receiver in other
        ]
        with self._with(_Fault(losses=losses)):
            yield

    @contextlib.contextmanager
    def lose(self, sender: Core, receiver: Core, *, share: float = 1.0) -> Iterator[None]:
        """Lose frames on their way from one VM to another during the block, but not those on the way back.

        Args:
            sender: sends them.
            receiver: does not get them.
            share: of them, from 0.001 to 1, chosen at random.

        Raises:
            ValueError: the share is none, or a VM has no card on this network.
            VirtainerError: the container cannot do it.
        """
        __tracebackhide__ = True
        permille = round(share * _WHOLE)
        if not 1 <= permille <= _WHOLE:
            raise ValueError(f"share={share}: a share from 0.001 to 1 is needed")
        with self._with(_Fault(losses=[_Loss(sender, receiver, permille)])):
            yield

    @contextlib.contextmanager
    def slow(
        self, *vms: Core, rate: str | int | None = None, delay: float | None = None, jitter: float | None = None
    ) -> Iterator[None]:
        """Slow down what VMs send on this network during the block.

        On their first card that is what they send to the test, too.

        Args:
            vms: which; by default all that are on it.
            rate: bits a second, or text such as `"512kbit"` or `"10Mbit"`.
            delay: seconds that each frame takes longer.
            jitter: seconds by which that varies.

        Raises:
            ValueError: an argument is none, or a VM has no card on this network.
            VirtainerError: the kernel of the engine's host cannot do it (the message names its module).
        """
        __tracebackhide__ = True
        if rate is None and delay is None:
            raise ValueError("slow() needs a rate or a delay")
        if (jitter or 0) > (delay or 0):
            raise ValueError(f"jitter={jitter}: it needs a delay that is no less")
        kbit = None if rate is None else max(1, parsing.bits_per_second(rate) // 1000)
        milliseconds = [None if each is None else each * 1000 for each in (delay, jitter)]
        with self._with(_Fault(shapes=[_Shape(vm, kbit, *milliseconds) for vm in vms or self.vms])):
            yield

    def heal(self) -> None:
        """End all faults of this network, those of blocks that are still open included; raises `VirtainerError`."""
        __tracebackhide__ = True
        self._owner.check()
        with self._lock:
            ended, self._faults = self._faults, []
            self._apply(ended)

    @contextlib.contextmanager
    def _with(self, fault: _Fault) -> Iterator[None]:
        __tracebackhide__ = True
        self._owner.check()
        with self._lock:
            for vm in _concerned(fault):
                if vm not in self._macs:
                    raise ValueError(
                        f"{vm.name} has no card on the network {self.label}; its first one is on {vm.network.label}"
                    )
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
        except BaseException:  # that it cannot be undone does not cover why the block has failed
            with contextlib.suppress(VirtainerError):
                self._end(fault)
            raise
        self._end(fault)

    def _end(self, fault: _Fault) -> None:
        with self._lock:
            if fault in self._faults:  # else `heal` has ended it
                self._faults.remove(fault)
                self._apply([fault])

    def _apply(self, changed: Sequence[_Fault]) -> None:
        """Tell the containers of those whom these faults touch what is to be in force now."""
        __tracebackhide__ = True
        for vm in _touched(changed):
            if vm in self._macs and not vm.container.ended:
                code, said = vm.container.run(["wire", self._macs[vm], json.dumps(self._wanted(vm))])
                if code != 0:
                    raise VirtainerError(
                        f"{vm.name} on the network {self.name}: {said.decode(errors='replace').strip()}"
                    )

    def _wanted(self, vm: Core) -> Mapping[str, object]:
        drop: dict[str, int] = {}
        shape: dict[str, object] = dict(_NO_SHAPE)
        for fault in self._faults:
            for loss in fault.losses:
                mac = self._macs.get(loss.sender)
                if loss.receiver is vm and mac is not None:
                    drop[mac] = max(loss.permille, drop.get(mac, 0))
            for each in fault.shapes:
                if each.sender is vm:
                    shape = {"rate_kbit": each.rate_kbit, "delay_ms": each.delay_ms, "jitter_ms": each.jitter_ms}
        return {"drop": drop, **shape}

    # What was on the wire

    @contextlib.contextmanager
    def capture(self, path: str | Path) -> Iterator[None]:
        """Write all frames that the VMs of this network send and get during the block to a pcap file.

        It is written at the end of the block, in the order of the frames' times; a frame from one VM to another is in
        it once, as it was sent. VMs that come during the block are in it, too.

        Raises:
            OSError: the file cannot be written; whether it can be made is seen before the block.
            VirtainerError: the container cannot do it.
        """
        __tracebackhide__ = True
        with Path(path).open("wb") as file, contextlib.closing(self.record()) as capture:
            try:
                yield
            finally:
                self.stop(capture)
                capture.write(file)

    def record(self) -> Capture:
        """Begin to capture; raises `VirtainerError`."""
        self._owner.check()
        capture = Capture(hidden=self.is_wire)
        with self._lock:
            try:
                for vm, mac in self._macs.items():
                    capture.add(vm, mac)
            except BaseException:
                capture.close()
                raise
            self._captures.append(capture)
        return capture

    def stop(self, capture: Capture) -> None:
        """Capture no more; what was recorded is still there."""
        self._owner.check()
        with self._lock:
            self._captures.remove(capture)
        capture.stop()


def _touched(faults: Sequence[_Fault]) -> list[Core]:
    """List the VMs whose containers do something for these faults."""
    receivers = (loss.receiver for fault in faults for loss in fault.losses)
    senders = (shape.sender for fault in faults for shape in fault.shapes)
    return list(dict.fromkeys((*receivers, *senders)))


def _concerned(fault: _Fault) -> set[Core]:
    return {*_touched([fault]), *(loss.sender for loss in fault.losses)}
