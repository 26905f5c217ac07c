"""A network of VMs: faults between them, and captures of what they send."""

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
from pytest_virtainers.errors import SpecError, UsageError, VirtainerError
from pytest_virtainers.support.forks import Owner, disown_in_child
from pytest_virtainers.vm.capture import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from ipaddress import IPv4Network

    from pytest_virtainers.config.network_spec import NetworkSpec
    from pytest_virtainers.engine.base import Network as EngineNetwork
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


@dataclass(eq=False)
class _Fault:
    losses: list[_Loss] = field(default_factory=list)
    shapes: list[_Shape] = field(default_factory=list)


class Network:
    """A network and the VMs on it.

    Faults (`partition`, `lose`, `slow`) last as long as their block, and add up. The test still reaches all VMs.

    Attributes:
        spec: what was requested.
        name: its name in markers.
        engine_name: its name in the engine.
        subnet: its IPv4 addresses; `None`: the engine does not know them.
        ipv6: whether it also has IPv6.
        has_host: whether the engine's host is on it.
        is_wire: whether the host's firewall cannot see the VMs' frames (images/runtime/virtainer/bridged_nic.py).
        recorder: captures everything on it, for the evidence of failing tests; `None`: nothing is captured.
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
        self._macs: dict[VM, str] = {}
        self._faults: list[_Fault] = []
        self._captures: list[Capture] = []
        self.recorder = self.record() if recorded else None
        disown_in_child(self)

    def __repr__(self) -> str:
        return f"<Network {self.name} ({self.spec.mode}, {self.subnet})>"

    @property
    def label(self) -> str:
        """The name, which also distinguishes the default networks with and without internet."""
        return f"{self.name}-isolated" if self.spec == DEFAULT.of_first_card(internet=False) else self.name

    @property
    def vms(self) -> tuple[VM, ...]:
        """The VMs that are on the network now."""
        with self._lock:
            return tuple(self._macs)

    def close(self) -> None:
        """Remove the network from the engine, if this process made it; raise `EngineError` if that fails."""
        if not self._owner.is_here:
            return
        if self.recorder is not None:
            self.recorder.close()
        self._made.close()

    def renewed(self) -> Network:
        """Return the same network of the engine, without VMs, faults and captures."""
        return Network(self.spec, self._made)

    def disown(self) -> None:
        """Leave the network to a forked child's parent."""
        self._lock = threading.RLock()

    # Its VMs

    def port(self, name: str, ip: str | int | IPv4Address | None, *, first: bool = False) -> Port:
        """Return how a container is connected.

        Others find it as `name.network`, and on its first network also as `name`. Not on others: Podman returns all
        addresses of a name, of which the one to use would be only one.

        Args:
            name: the name of the VM.
            ip: its address, or the number of the address in the subnet; anything else: the engine chooses.
            first: whether it is the VM's first network.

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

    def join(self, vm: VM, mac: str) -> None:
        """Add a VM that has a card here; `mac` is the card's address on the wire."""
        with self._lock:
            for capture in self._captures:
                capture.add(vm.machine, mac)
            self._macs[vm] = mac
            vm.machine.on_close.callback(self.leave, vm)

    def leave(self, vm: VM) -> None:
        """Remove a VM, if it is here."""
        with self._lock:
            mac = self._macs.pop(vm, None)
            if mac is None:
                return
            if self.recorder is not None:
                self.recorder.forget(mac)
            with contextlib.suppress(VirtainerError):  # another VM may get its MAC address
                self._apply([fault for fault in self._faults if vm in _concerned(fault)])

    # Faults

    @contextlib.contextmanager
    def partition(self, *groups: VM | Iterable[VM]) -> Iterator[None]:
        """Separate groups of VMs, for the duration of the block, as if a switch between them were off.

        Frames of any protocol are lost between the groups, in both directions. VMs in no group are not affected.

        Args:
            groups: each a VM or several.

        Raises:
            UsageError: there is only one group, a VM is in two, or a VM has no card on this network.
            VirtainerError: the container cannot do it.

        Example:
            `with vm.network.partition({a, b}, c): a.wait_until_fails("ping -c1 c")`
        """
        __tracebackhide__ = True
        sides = [{*group} if isinstance(group, Iterable) else {group} for group in groups]
        if len(sides) < 2 or sum(map(len, sides)) != len(set().union(*sides)):  # noqa: PLR2004
            raise UsageError("partition() needs two or more groups of VMs, and each VM in one of them")
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
    def lose(self, sender: VM, receiver: VM, *, share: float = 1.0) -> Iterator[None]:
        """Drop frames from one VM to another, but not in the other direction, for the duration of the block.

        Args:
            sender: the VM that sends them.
            receiver: the VM that does not get them.
            share: the share that is lost, from 0.001 to 1, at random.

        Raises:
            UsageError: the share is out of range, or a VM has no card on this network.
            VirtainerError: the container cannot do it.
        """
        __tracebackhide__ = True
        permille = round(share * _WHOLE)
        if not 1 <= permille <= _WHOLE:
            raise UsageError(f"share={share}: a share from 0.001 to 1 is needed")
        with self._with(_Fault(losses=[_Loss(sender, receiver, permille)])):
            yield

    @contextlib.contextmanager
    def slow(
        self, *vms: VM, rate: str | int | None = None, delay: float | None = None, jitter: float | None = None
    ) -> Iterator[None]:
        """Slow down what VMs send on this network, for the duration of the block.

        On a first card, this includes what they send to the test.

        Args:
            vms: the VMs; by default all on the network.
            rate: bits a second, or text such as `"512kbit"` or `"10Mbit"`.
            delay: seconds by which each frame is delayed.
            jitter: seconds by which the delay varies.

        Raises:
            UsageError: there is neither rate nor delay, a value is out of range, or a VM has no card on this network.
            VirtainerError: the kernel of the engine's host cannot do it (the message names its module).
        """
        __tracebackhide__ = True
        if rate is None and delay is None:
            raise UsageError("slow() needs a rate or a delay")
        if (jitter or 0) > (delay or 0):
            raise UsageError(f"jitter={jitter}: it needs a delay that is no less")
        kbit = None if rate is None else max(1, parsing.bits_per_second(rate) // 1000)
        milliseconds = [None if each is None else each * 1000 for each in (delay, jitter)]
        with self._with(_Fault(shapes=[_Shape(vm, kbit, *milliseconds) for vm in vms or self.vms])):
            yield

    def heal(self) -> None:
        """End all faults of this network, also those of open blocks; raise `VirtainerError` if a container cannot."""
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
                    raise UsageError(
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
        except BaseException:  # a failure to undo the fault does not hide this exception
            with contextlib.suppress(VirtainerError):
                self._end(fault)
            raise
        self._end(fault)

    def _end(self, fault: _Fault) -> None:
        with self._lock:
            if fault in self._faults:  # else `heal` ended it
                self._faults.remove(fault)
                self._apply([fault])

    def _apply(self, changed: Sequence[_Fault]) -> None:
        """Send their present faults to the containers of the VMs that these faults affect."""
        __tracebackhide__ = True
        for vm in _touched(changed):
            if vm in self._macs and not vm.machine.container.ended:
                code, said = vm.machine.container.run(["wire", self._macs[vm], json.dumps(self._wanted(vm))])
                if code != 0:
                    raise VirtainerError(
                        f"{vm.name} on the network {self.name}: {said.decode(errors='replace').strip()}"
                    )

    def _wanted(self, vm: VM) -> Mapping[str, object]:
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

    # Captures

    @contextlib.contextmanager
    def capture(self, path: str | Path) -> Iterator[None]:
        """Capture all frames that the VMs of this network send and get, for the duration of the block.

        The file is written at the end of the block, in the order of the frames' times. It has a frame from one VM to
        another once, as it was sent. VMs that join during the block are included.

        Args:
            path: the pcap file.

        Raises:
            OSError: the file cannot be written; it is created before the block.
            VirtainerError: the container cannot capture.
        """
        __tracebackhide__ = True
        with Path(path).open("wb") as file, contextlib.closing(self.record()) as capture:
            try:
                yield
            finally:
                self.stop(capture)
                capture.write(file)

    def record(self) -> Capture:
        """Start a capture; raise `VirtainerError` if a container cannot."""
        self._owner.check()
        capture = Capture(hidden=self.is_wire)
        with self._lock:
            try:
                for vm, mac in self._macs.items():
                    capture.add(vm.machine, mac)
            except BaseException:
                capture.close()
                raise
            self._captures.append(capture)
        return capture

    def stop(self, capture: Capture) -> None:
        """Stop a capture; what it has recorded is kept."""
        self._owner.check()
        with self._lock:
            self._captures.remove(capture)
        capture.stop()


def _touched(faults: Sequence[_Fault]) -> list[VM]:
    """List the VMs whose containers implement these faults."""
    receivers = (loss.receiver for fault in faults for loss in fault.losses)
    senders = (shape.sender for fault in faults for shape in fault.shapes)
    return list(dict.fromkeys((*receivers, *senders)))


def _concerned(fault: _Fault) -> set[VM]:
    return {*_touched([fault]), *(loss.sender for loss in fault.losses)}
