"""Choose subnets for networks, and find out which ones an engine's networks use."""

from __future__ import annotations

import random
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from pytest_virtainers.engine import ownership

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_virtainers.engine.base import Engine

    Subnet = IPv4Network | IPv6Network

# Outside of the engines' own pools: Docker's contain 192.168.100.0/24, which each container uses inside, and an
# engine within a guest would choose the same subnets as the one outside.
POOL = IPv4Network("10.213.0.0/16")
_PREFIX = 24


def free(taken: Sequence[IPv4Network], count: int) -> list[IPv4Network]:
    """Return at most `count` random subnets of the pool that do not overlap with those `taken`."""
    found = [each for each in POOL.subnets(new_prefix=_PREFIX) if not any(each.overlaps(other) for other in taken)]
    return random.sample(found, min(count, len(found)))


def in_use(engine: Engine, besides: str) -> tuple[list[Subnet], list[Subnet]]:
    """Return the subnets of all networks but the one called `besides`: those of any run, and others."""
    ours: list[Subnet] = []
    others: list[Subnet] = []
    for network in engine.networks():
        if network.name != besides:
            (ours if ownership.LABEL in network.labels else others).extend(network.subnets)
    return ours, others
