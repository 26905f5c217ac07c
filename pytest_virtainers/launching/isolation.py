"""Networks and addresses that are closed to VMs, kept up to date while their host gets more addresses."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from pytest_virtainers.config import reach
from pytest_virtainers.engine import host, subnets
from pytest_virtainers.errors import EngineError
from pytest_virtainers.support.forks import disown_in_child
from pytest_virtainers.support.runtime_modules import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.vm.network import Network

_PATIENCE_SECONDS = 20.0
_EVERYTHING = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True)
class Closed:
    """Networks and addresses of the engine's host to which a VM cannot connect."""

    networks: tuple[str, ...]
    hosts: tuple[str, ...]

    @classmethod
    def of(cls, container: Container) -> Closed:
        """Return what was closed to the VM of a container when it started."""
        lists = (container.environment.get(name, "") for name in (Variable.CLOSED_NETWORKS, Variable.CLOSED_HOSTS))
        return cls(*(tuple(filter(None, each.split(","))) for each in lists))

    def has(self, address: str) -> bool:
        """Return whether an address is closed."""
        return address in self.hosts or any(ip_address(address) in ip_network(each) for each in self.networks)


class Isolation:
    """What is closed to the VMs of one run, by their networks.

    Args:
        engine: the engine that runs the VMs.
        reached: networks that are open to VMs although they would be closed.
        note: called with messages for the user.
    """

    def __init__(
        self, engine: Engine, reached: Sequence[reach.Net] = (), note: Callable[[str], object] = lambda _text: None
    ) -> None:
        self._engine, self._reached, self._note = engine, reached, note
        self._networks: dict[Network, tuple[str, ...]] = {}  # closed to VMs on each
        self._guarded: dict[Container, tuple[Network, Closed]] = {}
        self._watch: host.AddressWatch | None = None
        self._lock = threading.Lock()  # also keeps the order in which containers get changes
        disown_in_child(self)

    def disown(self) -> None:
        """Leave the VMs to a forked child's parent; another of its threads may have held the lock."""
        self._lock, self._guarded, self._watch = threading.Lock(), {}, None

    def environment(self, network: Network) -> Mapping[str, str]:
        """Return the variables for a container whose first card is on a network; raises `EngineError`."""
        with self._lock:
            closed = self._closed(network)
        return {
            Variable.CLOSED_NETWORKS: ",".join(closed.networks),
            Variable.CLOSED_HOSTS: ",".join(closed.hosts),
            # Without the host on it, the gateway's address is another machine's.
            Variable.CLOSED_GATEWAY: "on" if network.has_host else "off",
        }

    def guard(self, container: Container, network: Network) -> None:
        """Close each address that the host gets to the VM of a started container, until it ends."""
        if not network.has_host or not self._engine.is_local:
            return
        with self._lock:
            if self._watch is None:
                self._watch = host.AddressWatch(self._refresh)
            self._guarded[container] = network, Closed.of(container)
            self._update(container)

    def forget(self) -> None:
        """Forget VMs that ended, and list the engine's networks again when needed."""
        with self._lock:
            self._networks = {}
            self._guarded = {each: about for each, about in self._guarded.items() if not each.ended}

    def close(self) -> None:
        """Stop guarding."""
        with self._lock:
            self._guarded = {}
        if self._watch is not None:
            self._watch.close()

    def _closed(self, network: Network) -> Closed:
        if not network.has_host:
            return Closed(tuple(map(str, reach.closed_metadata(self._reached))), ())
        if network not in self._networks:
            if network.spec.mode == "isolated":
                self._networks[network] = _EVERYTHING
            else:
                ours, others = subnets.in_use(self._engine, besides=network.engine_name)
                closed = reach.closed(self._reached, always=(subnets.POOL, *ours), others=others)
                self._networks[network] = tuple(map(str, closed))
        gateway = () if network.subnet is None else (str(network.subnet[1]),)  # on Podman only with the first VM
        return Closed(self._networks[network], tuple(sorted({*host.addresses(), *gateway})))

    def _refresh(self) -> None:
        with self._lock:
            self._networks = {}  # a new address may belong to a new network
            self._guarded = {each: about for each, about in self._guarded.items() if not each.ended}
            for container in self._guarded:
                self._update(container)

    def _update(self, container: Container) -> None:
        """Close to one what is not closed yet; addresses in closed networks are."""
        network, known = self._guarded[container]
        if all(map(known.has, host.addresses())):
            return
        try:
            wanted = self._closed(network)
            lists = json.dumps({"networks": wanted.networks, "hosts": wanted.hosts})
            code, said = container.run(["closed", lists], patience=_PATIENCE_SECONDS)
        except EngineError as error:
            code, said = -1, str(error).encode()
        if code == 0:
            self._guarded[container] = network, wanted
        elif not container.ended:
            self._note(
                f"{container.name}: addresses that the host got since its start could not be closed to it, so it may "
                f"reach services there: {said.decode(errors='replace').strip()}"
            )
