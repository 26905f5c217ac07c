"""The networks of one run: made when a VM first asks for one, gone at its end."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from pytest_virtainers.engine import host
from pytest_virtainers.engine import network as engine_network
from pytest_virtainers.errors import SpecError
from pytest_virtainers.handle.network import Network
from pytest_virtainers.network_spec import DEFAULT

if TYPE_CHECKING:
    from pytest_virtainers.engine.client import Engine
    from pytest_virtainers.network_spec import NetworkSpec


class Networks:
    """All networks of one run.

    Args:
        engine: where they are.
        run_id: of the run.
        recorded: whether all that is on them is captured, for the evidence of failing tests.
    """

    def __init__(self, engine: Engine, run_id: str, *, recorded: bool) -> None:
        self._engine = engine
        self._run_id = run_id
        self._recorded = recorded
        self._made: dict[tuple[str, str | None], Network] = {}
        self._environments: dict[NetworkSpec, dict[str, str]] = {}
        self._lock = threading.Lock()

    def get(self, spec: NetworkSpec) -> Network:
        """Give a network, made if need be.

        Raises:
            SpecError: another VM of the run has asked for something else of this name.
            EngineError: it cannot be made.
        """
        by_internet = spec.name == DEFAULT.name  # of this one there may be two: with and without a way out
        key = (spec.name, spec.mode if by_internet else None)
        with self._lock:
            if key not in self._made:
                self._made[key] = Network(spec, self._make(spec), recorded=self._recorded)
            found = self._made[key]
        if found.spec != spec:
            raise SpecError(
                f"the network {spec.name} is {found.spec} for one VM and {spec} for another: give it the same "
                "description everywhere, or another name"
            )
        return found

    def all(self) -> list[Network]:
        """List those that were made."""
        with self._lock:
            return list(self._made.values())

    def environment(self, spec: NetworkSpec) -> dict[str, str]:
        """Say what a virtainer whose first card is on this network keeps apart (docs/runtime-image.md)."""
        if spec not in self._environments:
            self._environments[spec] = self._environment(spec)
        return self._environments[spec]

    def _environment(self, spec: NetworkSpec) -> dict[str, str]:
        if spec.mode == "macvlan":
            return {}  # to be there with others is what it is for
        own = self.get(spec).engine_name
        closed = [engine_network.POOL, *engine_network.taken_subnets(self._engine, besides=own)]
        return {
            "CLOSED_NETWORKS": ",".join(sorted(map(str, closed))),
            "CLOSED_HOSTS": ",".join(host.addresses()),
            **({"DNS": "names"} if spec.mode == "isolated" else {}),
        }

    def close(self) -> None:
        """Remove them all; raises `EngineError`."""
        with contextlib.ExitStack() as stack:  # one failure must not keep the rest from being removed
            for network in self._made.values():
                stack.callback(network.close)
            self._made = {}

    def _make(self, spec: NetworkSpec) -> engine_network.Network | engine_network.ExistingNetwork:
        if spec.source is not None:
            return engine_network.ExistingNetwork(self._engine, spec.source)
        shape = engine_network.Shape(
            driver="macvlan" if spec.mode == "macvlan" else "bridge",
            internal=spec.mode == "isolated",
            masquerade=spec.mode != "routed",
            subnet=spec.subnet,
            ipv6=spec.ipv6,
            parent=spec.parent,
        )
        suffix = "-isolated" if spec.mode == "isolated" else ""
        return engine_network.Network(
            self._engine, f"virtainers-{self._run_id}-{spec.name}{suffix}", self._run_id, shape
        )
