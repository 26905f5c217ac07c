"""The networks that are closed to VMs although the engine's host can reach them; the setting `reach` opens some."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Net = IPv4Network | IPv6Network

# Private networks: RFC 1918, 6598, 2544, 4193, 3879. Not Python's `is_private`, which includes those of documentation
# (RFC 5737): they may be in use.
PRIVATE: tuple[Net, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("100.64.0.0/10"),
    IPv4Network("198.18.0.0/15"),
    IPv6Network("fc00::/7"),
    IPv6Network("fec0::/10"),
)
# Metadata services of clouds, which hand out a machine's credentials. Some are within `PRIVATE`, and stay closed when
# that is opened.
METADATA: tuple[Net, ...] = (
    IPv4Network("169.254.0.0/16"),  # most of them
    IPv4Network("168.63.129.16/32"),  # Azure
    IPv4Network("192.0.0.0/24"),  # Oracle
    IPv4Network("100.100.100.200/32"),  # Alibaba
    IPv6Network("fe80::/10"),
    IPv6Network("fd00:ec2::/32"),  # Amazon
    IPv6Network("fd20:ce::254/128"),  # Google
    IPv6Network("fd00:42::42/128"),  # Scaleway
)


def networks(value: object) -> tuple[Net, ...]:
    """Parse the networks that VMs may connect to: `none`, or networks, addresses or `private`, between commas.

    A network of `METADATA` is opened only by its own address or a part of it, not by a larger network.
    """
    words = [each.strip() for each in value.split(",")] if isinstance(value, str) else [""]
    if words == ["none"]:
        return ()
    try:
        return tuple(network for word in words for network in (PRIVATE if word == "private" else (ip_network(word),)))
    except ValueError as error:
        raise ValueError(
            f"none, private, or networks with commas between them are needed: 10.20.0.0/16,192.168.7.4 ({error})"
        ) from None


def closed(reach: Sequence[Net], *, always: Iterable[Net], others: Iterable[Net]) -> list[Net]:
    """Return the networks that are closed to VMs.

    Args:
        reach: what is open.
        always: networks that it does not open.
        others: networks that it may open, besides the private ones and those of metadata services.
    """
    return _merged((*always, *closed_metadata(reach), *_without((*PRIVATE, *others), reach)))


def closed_metadata(reach: Sequence[Net]) -> list[Net]:
    """Return the networks of metadata services that are closed to VMs."""
    named = [each for each in reach if any(_is_in(each, service) for service in METADATA)]
    return _without(METADATA, named)


def _is_in(inner: Net, outer: Net) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _without(networks: Iterable[Net], holes: Iterable[Net]) -> list[Net]:
    left = list(networks)
    for hole in holes:
        left = [piece for each in left for piece in _pieces(each, hole)]
    return left


def _pieces(network: Net, hole: Net) -> Iterable[Net]:
    """Return the parts of a network outside of a hole."""
    if _is_in(network, hole):
        return ()
    if not _is_in(hole, network):
        return (network,)
    if isinstance(network, IPv4Network):
        return network.address_exclude(hole) if isinstance(hole, IPv4Network) else (network,)
    return network.address_exclude(hole) if isinstance(hole, IPv6Network) else (network,)


def _merged(networks: Iterable[Net]) -> list[Net]:
    listed = list(networks)
    v4 = [each for each in listed if isinstance(each, IPv4Network)]
    v6 = [each for each in listed if isinstance(each, IPv6Network)]
    return [*collapse_addresses(v4), *collapse_addresses(v6)]
