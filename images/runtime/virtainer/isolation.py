"""What the guest may not reach, and what may not reach it: CLOSED_NETWORKS and CLOSED_HOSTS.

The container's own networks stay open, as there are the other machines of a test; but not the engine's host, which is
on them, too. It may call the guest, as a test does that logs in, and gets its answers.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from virtainer import ipv6, network

if TYPE_CHECKING:
    from collections.abc import Iterable

    from virtainer.settings import Settings

    Net = IPv4Network | IPv6Network

_TABLE = "virtainer-closed"


class Closed(NamedTuple):
    """What is closed, all of it as networks."""

    networks: tuple[Net, ...]
    hosts: tuple[Net, ...]  # the engine's with them
    own: tuple[Net, ...]  # of the container


def look(settings: Settings, lost: Iterable[str] = ()) -> Closed | None:
    """Say what is closed to this machine, as its container is connected now; None: nothing.

    The host is also on the networks of the addresses `lost`, which the container may have no more.
    """
    if not settings.isolated:
        return None
    neighbours = network.neighbours(Path("/proc/net/route").read_text()) | ipv6.neighbours()
    neighbours |= {str(ip_interface(each).network[1]) for each in lost}
    return closed(settings, neighbours, own_networks())


def own_networks() -> set[str]:
    """Give the networks that the container itself is on."""
    return network.connected(Path("/proc/net/route").read_text()) | ipv6.connected()


def closed(settings: Settings, neighbours: Iterable[str], own: Iterable[str]) -> Closed:
    """Say what is closed to a machine whose container is on the networks `own`, and its host at `neighbours`."""
    return Closed(
        tuple(ip_network(each) for each in settings.closed_networks),
        tuple(ip_network(each) for each in sorted({*settings.closed_hosts, *neighbours})),
        tuple(ip_network(each) for each in sorted(own)),
    )


def rules(closed: Closed | None, tap: str, inner: Iterable[str] = ()) -> str:
    """Return the input of `nft -f` for what goes through the container, to and from the guest's tap.

    The networks `inner`, on which the guest is, count as the container's own: its calls to itself go through it.
    """
    if closed is None:
        return ""
    closed = closed._replace(own=(*closed.own, *(ip_interface(each).network for each in inner)))
    refused, let_out, let_in, kept_out = [], [], [], []
    for family in ("ip", "ip6"):
        networks, hosts, own, friends = (
            _set(each, family) for each in (closed.networks, closed.hosts, closed.own, closed.own + closed.hosts)
        )
        refused += [f'iifname "{tap}" {family} daddr {hosts} reject with icmpx admin-prohibited'] if hosts else []
        let_out += [f'iifname "{tap}" {family} daddr {own} accept'] if own else []
        kept_out += (
            [f'iifname "{tap}" {family} daddr {networks} reject with icmpx admin-prohibited'] if networks else []
        )
        let_in += [f'oifname "{tap}" {family} saddr {friends} accept'] if friends else []
        kept_out += [f'oifname "{tap}" {family} saddr {networks} drop'] if networks else []
    lines = "\n        ".join(["ct state established,related accept", *refused, *let_out, *let_in, *kept_out])
    return f"""\
table inet {_TABLE} {{
    chain through {{
        type filter hook forward priority filter; policy accept;
        {lines}
    }}
}}
"""


class FrameRules(NamedTuple):
    """Lines of nftables for a joined card: a set, and statements for either direction."""

    sets: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()
    received: tuple[str, ...] = ()


def frame_rules(closed: Closed | None, host: Iterable[str] = ()) -> FrameRules:
    """Let a joined card send nothing to closed hosts, nor to the MACs `host` of the engine's.

    That one has more addresses than are known, and routes; its MAC may change with Podman, so it is also learnt.

    Networks are not closed there: the machines on it may have any addresses, and route for each other; a way out is
    the engine's to give or not. Nothing is known of connections: not even answers are sent.
    """
    if closed is None:
        return FrameRules()
    macs = ", ".join(host)
    learnt = f"set host {{ type ether_addr; size 64; flags dynamic; {f'elements = {{ {macs} }}; ' if macs else ''}}}"
    sent, received = ["ether daddr @host drop"], []
    if hosts := _set(closed.hosts, "ip"):
        sent += [f"ip daddr {hosts} drop", f"arp daddr ip {hosts} drop"]
        received += [f"arp saddr ip {hosts} add @host {{ ether saddr }}"]
    if hosts := _set(closed.hosts, "ip6"):
        sent += [f"ip6 daddr {hosts} drop", f"icmpv6 type nd-neighbor-solicit icmpv6 taddr {hosts} drop"]
    return FrameRules((learnt,), tuple(sent), tuple(received))


def _set(networks: Iterable[Net], family: str) -> str:
    """Write those of one family as nftables does, without overlaps, which it refuses; none: nothing."""
    v4 = [each for each in networks if isinstance(each, IPv4Network)]
    v6 = [each for each in networks if isinstance(each, IPv6Network)]
    merged = collapse_addresses(v4) if family == "ip" else collapse_addresses(v6)
    words = ", ".join(str(each) for each in merged)
    return f"{{ {words} }}" if words else ""
