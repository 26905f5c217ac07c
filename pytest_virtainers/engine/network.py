"""Isolated bridge networks of a run."""

from __future__ import annotations

import random
import time
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

import docker.errors
from docker.types import IPAMConfig, IPAMPool

from pytest_virtainers.engine import owner
from pytest_virtainers.errors import EngineError

if TYPE_CHECKING:
    from pytest_virtainers.engine.client import Engine

# Not the engines' own pools: Docker's reach 192.168.100.0/24, which every guest has inside its container, and a
# Docker or Podman that runs inside a guest would choose the same as the one outside.
POOL = IPv4Network("10.213.0.0/16")
_PREFIX = 24
_TRIES = 20
_TAKEN = ("overlap", "already used", "already being used")  # how Docker and Podman say it
_END_SECONDS = 10.0


class Network:
    """A bridge network of its own; with `internet` off it has no way out."""

    def __init__(self, engine: Engine, name: str, run_id: str, *, internet: bool) -> None:
        """Create it on a subnet that neither this host nor the engine uses; raises `EngineError`."""
        self.name = name
        self._engine = engine
        for subnet in free_subnets(_host_networks()):
            with engine.failures(f"creating network {name}"):
                try:
                    engine.api.create_network(
                        name,
                        driver="bridge",
                        ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet))]),
                        internal=not internet,
                        check_duplicate=True,
                        labels=owner.labels("network", run_id),
                    )
                except docker.errors.APIError as error:
                    if not any(sign in str(error.explanation).lower() for sign in _TAKEN):
                        raise
                else:
                    return
        raise EngineError(
            f"creating network {name} failed: {_TRIES} subnets of {POOL} were tried, and all are taken. "
            "See which networks are there (docker network ls), and remove some."
        )

    def close(self) -> None:
        """Remove it; containers that are just ending get a moment to let go of it; raises `EngineError`."""
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


def free_subnets(taken: list[IPv4Network]) -> list[IPv4Network]:
    """Choose some subnets of the pool at random, none of which shares addresses with those `taken`."""
    free = [each for each in POOL.subnets(new_prefix=_PREFIX) if not any(each.overlaps(other) for other in taken)]
    return random.sample(free, min(_TRIES, len(free)))


def _host_networks() -> list[IPv4Network]:
    """List the networks to which this host has routes, without the default route (Linux; elsewhere none)."""
    try:
        rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    except OSError:
        return []
    # The kernel writes addresses and masks as numbers in the host's byte order.
    routes = [(bytes.fromhex(row[1])[::-1], bytes.fromhex(row[7])[::-1]) for row in rows]
    return [IPv4Network((net, int.from_bytes(mask).bit_count())) for net, mask in routes if any(mask)]
