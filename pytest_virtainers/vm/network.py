"""A network of VMs: who is on it, faults between them, and captures of what they send."""

from __future__ import annotations

import contextlib
import threading
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.config.network_spec import DEFAULT
from pytest_virtainers.engine.plan import Port
from pytest_virtainers.errors import SpecError, UsageError
from pytest_virtainers.support.forks import Owner, disown_in_child
from pytest_virtainers.vm import link_faults
from pytest_virtainers.vm.capture import Capture
from pytest_virtainers.vm.link_faults import LinkFaults

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from ipaddress import IPv4Network

    from pytest_virtainers.config.network_spec import NetworkSpec
    from pytest_virtainers.engine.base import Network as EngineNetwork
    from pytest_virtainers.vm.vm import VM


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
        self._faults = LinkFaults(self.name, self._macs)
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
        self._faults.disown()

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
            self._faults.forget(vm)

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
        with self._during(link_faults.partition(groups)):
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
        with self._during(link_faults.loss(sender, receiver, share)):
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
        with self._during(link_faults.slowness(vms or self.vms, rate, delay, jitter)):
            yield

    def heal(self) -> None:
        """End all faults of this network, also those of open blocks; raise `VirtainerError` if a container cannot."""
        __tracebackhide__ = True
        self._owner.check()
        self._faults.heal()

    def _during(self, fault: link_faults.Fault) -> AbstractContextManager[None]:
        __tracebackhide__ = True
        self._owner.check()
        for vm in fault.vms:
            if vm not in self.vms:
                raise UsageError(
                    f"{vm.name} has no card on the network {self.label}; its first one is on {vm.network.label}"
                )
        return self._faults.during(fault)

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
