"""Networks of a run on the engine, and those that were there before."""

from __future__ import annotations

import random
import secrets
import time
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

import docker.errors
from docker.types import IPAMConfig, IPAMPool

from pytest_virtainers.engine import host, ownership
from pytest_virtainers.errors import EngineError
from pytest_virtainers.support.forks import Owner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_virtainers.engine.docker.engine import Engine

    Subnet = IPv4Network | IPv6Network

# Not the engines' own pools: Docker's reach 192.168.100.0/24, which every guest has inside its container, and a
# Docker or Podman that runs inside a guest would choose the same as the one outside.
POOL = IPv4Network("10.213.0.0/16")
_PREFIX = 24
_TRIES = 20
_TAKEN = ("overlap", "already used", "already being used")  # how Docker and Podman say it
_END_SECONDS = 10.0
_NO_MASQUERADE = {"com.docker.network.bridge.enable_ip_masquerade": "false"}


@dataclass(frozen=True)
class Shape:
    """What a network should be.

    Attributes:
        driver: `bridge` or `macvlan`.
        internal: without a way out.
        masquerade: whether what leaves it gets the host's address.
        subnet: its addresses; None: a free one of the pool.
        ipv6: whether it has IPv6 addresses, too, of a unique local prefix chosen at random (RFC 4193).
        parent: the host's interface of a macvlan.
    """

    driver: str = "bridge"
    internal: bool = False
    masquerade: bool = True
    subnet: IPv4Network | None = None
    ipv6: bool = False
    parent: str | None = None


class Network:
    """A network of a run.

    Attributes:
        name: the engine's.
        subnet: its IPv4 addresses; None: none that the engine knows.
        ipv6: whether it has IPv6, too.
        driver: the engine's driver; on networks of another than `bridge`, the engine's host is not itself.
    """

    def __init__(self, engine: Engine, name: str, labels: Mapping[str, str], shape: Shape) -> None:
        """Create it, if need be on a subnet that neither this host nor the engine uses; raises `EngineError`."""
        self.name = name
        self._engine = engine
        self._owner = Owner(f"the network {name}", "Use a thread.")
        self.subnet: IPv4Network | None = None
        self.ipv6, self.driver = shape.ipv6, shape.driver
        if not shape.masquerade and engine.kind == "podman":
            raise EngineError(
                f"creating network {name} failed: Podman's networks hide their addresses behind the host's. "
                "Use Docker for a routed network, or make one by other means and give its name (mode existing)"
            )
        candidates = [shape.subnet] if shape.subnet else free_subnets(host.networks())
        for subnet in candidates:
            with engine.failures(f"creating network {name}"):
                try:
                    self._create(labels, shape, subnet)
                except docker.errors.APIError as error:
                    if shape.subnet or not any(sign in str(error.explanation).lower() for sign in _TAKEN):
                        raise
                else:
                    self.subnet = subnet
                    return
        raise EngineError(
            f"creating network {name} failed: {_TRIES} subnets of {POOL} were tried, and all are taken. "
            "See which networks are there (docker network ls), and remove some."
        )

    def _create(self, labels: Mapping[str, str], shape: Shape, subnet: IPv4Network) -> None:
        # The engine's own choice is from the upper half: the lower one is for addresses that somebody asks for.
        upper = list(subnet.subnets(1))[-1] if subnet.prefixlen < 31 else subnet  # noqa: PLR2004
        pools = [IPAMPool(subnet=str(subnet), iprange=str(upper), gateway=str(subnet[1]))]
        if shape.ipv6:
            pools.append(IPAMPool(subnet=str(_local_prefix())))
        self._engine.api.create_network(
            self.name,
            driver=shape.driver,
            options={
                **({} if shape.masquerade else _NO_MASQUERADE),
                **({"parent": shape.parent} if shape.parent else {}),
            },
            ipam=IPAMConfig(pool_configs=pools),
            internal=shape.internal,
            enable_ipv6=shape.ipv6,
            check_duplicate=True,
            labels=dict(labels),
        )

    def close(self) -> None:
        """Remove it; containers that are just ending get a moment to let go of it; raises `EngineError`.

        A forked child leaves it to its parent.
        """
        if not self._owner.is_here:
            return
        deadline = time.monotonic() + _END_SECONDS
        while True:
            with self._engine.failures(f"removing network {self.name}"):
                try:
                    self._engine.api.remove_network(self.name)
                except docker.errors.NotFound:
                    return
                except docker.errors.APIError:
                    if time.monotonic() > deadline:
                        raise
                else:
                    return
            time.sleep(0.2)


class ExistingNetwork:
    """A network of the engine that is not ours: it stays. Attributes as those of `Network`."""

    def __init__(self, engine: Engine, name: str) -> None:
        """Look at it; raises `EngineError` when there is none."""
        self.name = name
        with engine.failures(f"looking at network {name}"):
            try:
                found = engine.api.inspect_network(name)
            except docker.errors.NotFound:
                there = ", ".join(sorted(each["Name"] for each in engine.api.networks()))
                raise EngineError(
                    f"there is no network {name} on {engine}; there are {there}. Make it first, or correct its source"
                ) from None
        of_v4 = [each for each in subnets_of(found) if isinstance(each, IPv4Network)]
        self.subnet: IPv4Network | None = of_v4[0] if of_v4 else None
        self.ipv6, self.driver = bool(found.get("EnableIPv6")), str(found.get("Driver"))

    def close(self) -> None:
        """Leave it as it is."""


def there_is(engine: Engine, name: str) -> bool:
    """Tell whether the engine has a network of this name; raises `EngineError`."""
    with engine.failures(f"looking for network {name}"):
        return any(each["Name"] == name for each in engine.api.networks(names=[name]))


def subnets_of(network: Any) -> Iterator[Subnet]:
    """List the subnets of a network as the engine describes it."""
    for pool in (network.get("IPAM") or {}).get("Config") or ():
        if pool.get("Subnet"):
            yield ip_network(pool["Subnet"], strict=False)


def taken_subnets(engine: Engine, besides: str) -> tuple[list[Subnet], list[Subnet]]:
    """List the subnets of the engine's networks except the one called `besides`; raises `EngineError`.

    Returns:
        Those that a run of virtainers has made, this one or another, and those of others.
    """
    with engine.failures("listing networks"):
        listed = [each for each in engine.api.networks() if each["Name"] != besides]
    ours, others = (
        [
            subnet
            for each in listed
            if (ownership.LABEL in (each.get("Labels") or {})) == is_ours
            for subnet in subnets_of(each)
        ]
        for is_ours in (True, False)
    )
    return ours, others


def free_subnets(taken: list[IPv4Network]) -> list[IPv4Network]:
    """Choose some subnets of the pool at random, none of which shares addresses with those `taken`."""
    free = [each for each in POOL.subnets(new_prefix=_PREFIX) if not any(each.overlaps(other) for other in taken)]
    return random.sample(free, min(_TRIES, len(free)))


def _local_prefix() -> IPv6Network:
    return IPv6Network((b"\xfd" + secrets.token_bytes(5) + bytes(10), 64))
