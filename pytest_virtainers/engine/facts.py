"""What an engine reports about containers, networks, images and volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Network, IPv6Network


@dataclass(frozen=True)
class Addresses:
    """A container's addresses on one network; texts are empty where the engine knows none."""

    mac: str = ""
    address: str = ""
    address6: str = ""
    prefix: int = 32
    """How many bits of the IPv4 address are the network's."""


@dataclass(frozen=True)
class ContainerInfo:
    """A container in the engine's list.

    Attributes:
        state: the engine's word: `created`, `running`, `exited`, …
        created: seconds since 1970.
        address: its first IPv4 address; empty while it does not run.
    """

    id: str
    name: str
    labels: Mapping[str, str]
    state: str
    created: int
    address: str


@dataclass(frozen=True)
class NetworkInfo:
    """A network in the engine's list."""

    name: str
    labels: Mapping[str, str]
    subnets: tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True)
class Image:
    """A container image that the engine has; `arch` as in `amd64`."""

    id: str
    arch: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Volume:
    """A volume.

    Attributes:
        folder: the directory of the engine's host with its files; empty: they are mounted for containers only.
        created: the engine's text for the time of its creation.
    """

    folder: str
    created: str
