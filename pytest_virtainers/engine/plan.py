"""What a container or a network should be, whatever engine makes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Network


@dataclass(frozen=True)
class Port:
    """A container's place on a network.

    Attributes:
        network: the engine's name of the network.
        aliases: names by which other containers on the network find this one.
        address: its IPv4 address; `None`: the engine chooses one.
    """

    network: str
    aliases: tuple[str, ...] = ()
    address: str | None = None


@dataclass(frozen=True)
class Bind:
    """A mount: `source` is an absolute directory of the engine's host, or the name of a volume."""

    target: str
    source: str
    writable: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether the source is a directory of the engine's host."""
        return self.source.startswith("/")


@dataclass(frozen=True)
class Plan:
    """What a container should be; sizes in MiB.

    Attributes:
        kind: value of the label that marks all objects of this project (`vm`, `helper`).
        binds: directories and volumes to mount.
        volume: name of a volume to create and mount at `/mounted`. `Container.close` removes it, so its files can
            still be read after the container has ended.
        folder: absolute directory of the engine's host to mount at `/mounted` instead.
        port: its place on a network; `None`: the engine's default network.
        offline: whether it has no network at all.
        labels: labels in addition to those of ownership.
        lease: whether the container ends with this process.
        auto_remove: whether the engine removes the container when it has ended.
        stop_seconds: seconds between SIGTERM and SIGKILL when a user stops it; `None`: the engine's default.
    """

    name: str
    kind: str
    image: str
    entrypoint: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()
    volume: str | None = None
    folder: str | None = None
    port: Port | None = None
    offline: bool = False
    devices: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    dns_options: tuple[str, ...] = ()
    memory_mib: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    lease: bool = True
    auto_remove: bool = True
    stop_seconds: int | None = None


@dataclass(frozen=True)
class NetworkPlan:
    """What a network should be.

    Attributes:
        kind: value of the label that marks all objects of this project.
        driver: `bridge` or `macvlan`.
        internal: whether it has no way out.
        masquerade: whether packets that leave it get the host's address.
        subnet: its IPv4 addresses; `None`: a free subnet of the pool.
        ipv6: whether it also has IPv6, with a random unique local prefix (RFC 4193).
        parent: the host's interface of a macvlan.
    """

    name: str
    kind: str = "network"
    driver: str = "bridge"
    internal: bool = False
    masquerade: bool = True
    subnet: IPv4Network | None = None
    ipv6: bool = False
    parent: str | None = None
