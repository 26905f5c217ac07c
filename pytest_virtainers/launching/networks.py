"""The networks of one run: created when a VM first needs one, removed at the end."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.config.network_spec import DEFAULT
from pytest_virtainers.engine import ownership
from pytest_virtainers.engine.plan import NetworkPlan
from pytest_virtainers.errors import SpecError
from pytest_virtainers.launching.isolation import Isolation
from pytest_virtainers.support.forks import disown_in_child
from pytest_virtainers.support.paths import locked
from pytest_virtainers.support.runtime_modules import Variable
from pytest_virtainers.vm.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_virtainers.config.network_spec import NetworkSpec
    from pytest_virtainers.config.reach import Net
    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.engine.base import Network as EngineNetwork

# So that all calls of the guest are refused at once, not only some each second.
_REFUSALS = {"net.ipv4.icmp_ratelimit": "0"}
_IPV6 = {"net.ipv6.conf.all.forwarding": "1", "net.ipv6.conf.default.disable_ipv6": "0"}


@dataclass(frozen=True)
class NetworkSetting:
    """What a container needs to be on its first network (docs/runtime-image.md, variables and IPv6)."""

    network: Network
    environment: Mapping[str, str]
    sysctls: Mapping[str, str]
    dns_options: tuple[str, ...]


class Networks:
    """All networks of one run.

    Args:
        engine: the engine that has them.
        run_id: id of the run.
        recorded: whether all traffic is captured, for the evidence of failing tests.
        reached: networks that are open to VMs although they would be closed.
        note: called with messages for the user.
        lasting: whether they are those of detached VMs: an existing network is used again, and none is removed here.
    """

    def __init__(
        self,
        engine: Engine,
        run_id: str,
        *,
        recorded: bool,
        reached: Sequence[Net] = (),
        note: Callable[[str], object] = lambda _text: None,
        lasting: bool = False,
    ) -> None:
        self._engine = engine
        self._run_id = run_id
        self._recorded = recorded
        self._lasting = lasting
        self._made: dict[tuple[str, str | None], Network] = {}
        self._isolation = Isolation(engine, reached, note)
        self._lock = threading.Lock()
        disown_in_child(self)

    def disown(self) -> None:
        """Leave them to a forked child's parent; another of its threads may have held the lock."""
        self._lock = threading.Lock()

    def get(self, spec: NetworkSpec) -> Network:
        """Return a network; create it if it is missing.

        Raises:
            SpecError: another VM of the run describes a network of this name otherwise.
            EngineError: it cannot be created.
        """
        by_internet = spec.name == DEFAULT.name  # there may be two of these: with and without internet
        key = (spec.name, spec.mode if by_internet else None)
        with self._lock:
            if key not in self._made:
                self._made[key] = Network(spec, self._make(spec), recorded=self._recorded)
            found = self._made[key]
        if found.spec != spec:
            raise SpecError(
                f"the network {spec.name} is {found.spec} for one VM and {spec} for another: describe it alike "
                "everywhere, or give one of them another name"
            )
        return found

    def all(self) -> list[Network]:
        """Return the networks that were created."""
        with self._lock:
            return list(self._made.values())

    def setting(self, spec: NetworkSpec) -> NetworkSetting:
        """Return what a container needs whose first network this is; creates it, and raises, as `get` does."""
        network = self.get(spec)
        isolated = spec.mode == "isolated"
        return NetworkSetting(
            network=network,
            environment={**self._isolation.environment(network), **({Variable.DNS: "names"} if isolated else {})},
            sysctls={**_REFUSALS, **(_IPV6 if network.ipv6 else {})},
            dns_options=("ndots:1",) if isolated else (),
        )

    def guard(self, container: Container, spec: NetworkSpec) -> None:
        """Close addresses that the host gets later to a started virtainer whose first card is on this network.

        A detached VM is not guarded: this process ends before it.
        """
        if not self._lasting:
            self._isolation.guard(container, self.get(spec))

    def reset(self) -> None:
        """Remove all but the default networks, which other VMs can use afterwards; raises `EngineError`."""
        with contextlib.ExitStack() as stack, self._lock:
            made, self._made = self._made, {}
            for key, network in made.items():
                if network.name == DEFAULT.name and network.recorder is None:
                    self._made[key] = network.renewed()
                else:
                    stack.callback(network.close)
            self._isolation.forget()

    def close(self) -> None:
        """Remove all networks; raises `EngineError`."""
        self._isolation.close()
        with contextlib.ExitStack() as stack:  # one failure must not keep the rest from being removed
            for network in () if self._lasting else self._made.values():
                stack.callback(network.close)
            self._made = {}

    def _make(self, spec: NetworkSpec) -> EngineNetwork:
        if spec.source is not None:
            return self._engine.network(spec.source)
        # Podman has no rules for its internal networks, and Docker's, where they are, too, drop what no rule passes:
        # on a bridge as well, if the host lets the firewall look there (bridge-nf-call-iptables). So on Podman, it is
        # the containers alone that leave their VMs no way out. (On a wire, they hide from the firewall.)
        isolated = spec.mode == "isolated" and self._engine.kind != "podman"
        suffix = "-isolated" if spec.mode == "isolated" else ""
        run = "" if self._lasting else f"{self._run_id}-"
        plan = NetworkPlan(
            name=f"virtainers-{run}{spec.name}{suffix}",
            kind=ownership.DETACHED_NETWORK if self._lasting else "network",
            driver="macvlan" if spec.mode == "macvlan" else "bridge",
            internal=isolated or spec.mode == "wire",
            masquerade=spec.mode != "routed",
            subnet=spec.subnet,
            ipv6=spec.ipv6,
            parent=spec.parent,
        )
        if not self._lasting:
            return self._engine.create_network(plan, self._run_id)
        with locked("machines-network"):
            if any(each.name == plan.name for each in self._engine.networks()):
                return self._engine.network(plan.name)
            return self._engine.create_network(plan, self._run_id)
