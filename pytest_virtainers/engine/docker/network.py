"""Networks that a run creates on the engine, and networks that were there before."""

from __future__ import annotations

import secrets
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

import docker.errors
from docker.types import IPAMConfig, IPAMPool

from pytest_virtainers.engine import host, ownership, subnets
from pytest_virtainers.engine.docker.removal import remove
from pytest_virtainers.errors import EngineError
from pytest_virtainers.support.forks import Owner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_virtainers.engine.docker.engine import DockerEngine
    from pytest_virtainers.engine.plan import NetworkPlan

_TRIES = 20
_TAKEN = ("overlap", "already used", "already being used")  # in messages of Docker and Podman
_NO_MASQUERADE = {"com.docker.network.bridge.enable_ip_masquerade": "false"}


class CreatedNetwork:
    """A network of a run; attributes as in `engine.base.Network`."""

    def __init__(self, engine: DockerEngine, plan: NetworkPlan, run_id: str) -> None:
        """Create it; raise `EngineError` if the engine refuses or all tried subnets are taken."""
        self.name, self.ipv6, self.driver = plan.name, plan.ipv6, plan.driver
        self._engine = engine
        self._owner = Owner(f"the network {plan.name}", "Use a thread.")
        self.subnet: IPv4Network | None = None
        if not plan.masquerade and engine.kind == "podman":
            raise EngineError(
                f"creating network {plan.name} failed: Podman's networks hide their addresses behind the host's. "
                "Use Docker for a routed network, or create one by other means and pass its name (mode existing)"
            )
        for subnet in [plan.subnet] if plan.subnet else subnets.free(host.networks(), _TRIES):
            with engine.failures(f"creating network {plan.name}"):
                try:
                    self._create(plan, subnet, run_id)
                except docker.errors.APIError as error:
                    if plan.subnet or not any(sign in str(error.explanation).lower() for sign in _TAKEN):
                        raise
                else:
                    self.subnet = subnet
                    return
        raise EngineError(
            f"creating network {plan.name} failed: {_TRIES} subnets of {subnets.POOL} were tried, and all are taken. "
            "See which networks there are (docker network ls), and remove some."
        )

    def _create(self, plan: NetworkPlan, subnet: IPv4Network, run_id: str) -> None:
        # The engine assigns addresses of the upper half; users ask for those of the lower half.
        upper = list(subnet.subnets(1))[-1] if subnet.prefixlen < 31 else subnet  # noqa: PLR2004
        pools = [IPAMPool(subnet=str(subnet), iprange=str(upper), gateway=str(subnet[1]))]
        if plan.ipv6:
            pools.append(IPAMPool(subnet=str(_local_prefix())))
        self._engine.api.create_network(
            self.name,
            driver=plan.driver,
            options={
                **({} if plan.masquerade else _NO_MASQUERADE),
                **({"parent": plan.parent} if plan.parent else {}),
            },
            ipam=IPAMConfig(pool_configs=pools),
            internal=plan.internal,
            enable_ipv6=plan.ipv6,
            check_duplicate=True,
            labels=ownership.labels(plan.kind, run_id),
        )

    def close(self) -> None:
        """Remove it; containers that are just ending get time to leave it. A forked child leaves it alone."""
        if self._owner.is_here:
            remove(self._engine, f"network {self.name}", lambda: self._engine.api.remove_network(self.name))


class ExistingNetwork:
    """A network that this run did not create; attributes as in `engine.base.Network`."""

    def __init__(self, engine: DockerEngine, name: str) -> None:
        """Inspect it; raise `EngineError` if there is none of this name."""
        self.name = name
        with engine.failures(f"inspecting network {name}"):
            try:
                found = engine.api.inspect_network(name)
            except docker.errors.NotFound:
                there = ", ".join(sorted(each.name for each in engine.networks()))
                raise EngineError(
                    f"there is no network {name} on {engine}; there are {there}. Create it first, or correct the "
                    "source"
                ) from None
        of_v4 = [each for each in subnets_of(found) if isinstance(each, IPv4Network)]
        self.subnet: IPv4Network | None = of_v4[0] if of_v4 else None
        self.ipv6, self.driver = bool(found.get("EnableIPv6")), str(found.get("Driver"))

    def close(self) -> None:
        """Leave it as it is."""


def subnets_of(network: Any) -> Iterator[IPv4Network | IPv6Network]:
    """Yield the subnets of a network as the engine describes it."""
    for pool in (network.get("IPAM") or {}).get("Config") or ():
        if pool.get("Subnet"):
            yield ip_network(pool["Subnet"], strict=False)


def _local_prefix() -> IPv6Network:
    return IPv6Network((b"\xfd" + secrets.token_bytes(5) + bytes(10), 64))
