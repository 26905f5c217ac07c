"""Firewall rules for what the guest may not reach, and what may not reach it: CLOSED_NETWORKS and CLOSED_HOSTS.

The container's own networks stay open, as they have the other machines of a test, except for the engine's host, which
is on them, too. The host may connect to the guest, as a test does that logs in, and gets its answers.

Both lists may change while the VM runs: the command `closed` replaces them, for all cards.

    docker exec CONTAINER closed '{"networks": ["10.0.0.0/8"], "hosts": ["203.0.113.1"]}'
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from virtainer import ipv6, network
from virtainer.settings import Settings
from virtainer.tools import ToolError, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Net = IPv4Network | IPv6Network

_USAGE = """usage: closed '{"networks": [NETWORK, ...], "hosts": [ADDRESS, ...]}'"""
_TABLE = "virtainer-closed"
_RECORD = Path("/run/virtainer/closed.json")  # the lists after they were replaced
_LOCK = Path("/run/virtainer/closed.lock")
_FAMILIES = {"ip": "", "ip6": "6"}  # and the ends of the names of their sets
_TYPES = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
_HOSTS, _NETWORKS = "closed_hosts", "closed_networks"  # sets, in each of our tables that uses them


class Closed(NamedTuple):
    """All that is closed, as networks."""

    networks: tuple[Net, ...]
    hosts: tuple[Net, ...]
    neighbours: tuple[Net, ...]  # where the engine's host is on the container's networks
    own: tuple[Net, ...]  # networks of the container


class Invalid(Exception):
    """The lists are not valid; the text says why."""


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Prevent changes to the lists during the block, in which rules are made from them."""
    _LOCK.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def look(settings: Settings, lost: Iterable[str] = ()) -> Closed | None:
    """Return what is closed to this machine, as its container is connected now; `None` for nothing.

    The host is also on the networks of the addresses `lost`, which the container may no longer have.
    """
    if not settings.isolated:
        return None
    neighbours = {str(ip_interface(each).network[1]) for each in lost}
    if settings.closed_gateway:
        neighbours |= network.neighbours(Path("/proc/net/route").read_text()) | ipv6.neighbours()
    if _RECORD.exists():
        networks, hosts = json.loads(_RECORD.read_text())
        settings = settings._replace(closed_networks=networks, closed_hosts=hosts)
    return closed(settings, neighbours, own_networks())


def own_networks() -> set[str]:
    """Return the networks that the container itself is on."""
    return network.connected(Path("/proc/net/route").read_text()) | ipv6.connected()


def closed(settings: Settings, neighbours: Iterable[str], own: Iterable[str]) -> Closed:
    """Return what is closed to a machine; its container is on the networks `own`, with the host at `neighbours`."""
    return Closed(
        *(
            tuple(ip_network(each) for each in sorted(some))
            for some in (settings.closed_networks, settings.closed_hosts, neighbours, own)
        )
    )


def rules(closed: Closed | None, tap: str, inner: Iterable[str] = ()) -> str:
    """Return the input of `nft -f` for what goes through the container, to and from the guest's tap.

    The networks `inner`, on which the guest is, count as the container's own: its connections to itself pass through
    it.
    """
    if closed is None:
        return ""
    closed = closed._replace(own=(*closed.own, *(ip_interface(each).network for each in inner)))
    refused, let_out, let_in, kept_out = [], [], [], []
    for family, suffix in _FAMILIES.items():
        neighbours, own = (_elements(each, family) for each in (closed.neighbours, closed.own))
        refused += [f'iifname "{tap}" {family} daddr @{_HOSTS}{suffix} reject with icmpx admin-prohibited']
        refused += (
            [f'iifname "{tap}" {family} daddr {neighbours} reject with icmpx admin-prohibited'] if neighbours else []
        )
        let_out += [f'iifname "{tap}" {family} daddr {own} accept'] if own else []
        kept_out += [f'iifname "{tap}" {family} daddr @{_NETWORKS}{suffix} reject with icmpx admin-prohibited']
        let_in += [f'oifname "{tap}" {family} saddr @{_HOSTS}{suffix} accept']
        let_in += [f'oifname "{tap}" {family} saddr {each} accept' for each in (own, neighbours) if each]
        kept_out += [f'oifname "{tap}" {family} saddr @{_NETWORKS}{suffix} drop']
    sets = "\n    ".join(
        _declared(name, listed, family) for name, listed in _lists(closed).items() for family in _FAMILIES
    )
    lines = "\n        ".join(["ct state established,related accept", *refused, *let_out, *let_in, *kept_out])
    return f"""\
table inet {_TABLE} {{
    {sets}
    chain through {{
        type filter hook forward priority filter; policy accept;
        {lines}
    }}
}}
"""


class FrameRules(NamedTuple):
    """Lines of nftables for a joined card: sets, and statements for either direction."""

    sets: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()
    received: tuple[str, ...] = ()


def frame_rules(closed: Closed | None, host: Iterable[str] = ()) -> FrameRules:
    """Return the rules that prevent a joined card from sending to closed hosts.

    `host` are MACs of the engine's host, which are closed, too. It may have more addresses than are known, and
    routes; its MAC may change with Podman, so it is also learnt.

    Networks are not closed there: the machines on them may have any addresses, and the engine decides about a route.
    Connections are not tracked: not even answers are sent.
    """
    if closed is None:
        return FrameRules()
    macs = ", ".join(host)
    learnt = f"set host {{ type ether_addr; size 64; flags dynamic; {f'elements = {{ {macs} }}; ' if macs else ''}}}"
    sets = (learnt, *(_declared(_HOSTS, closed.hosts, family) for family in _FAMILIES))
    sent, received = ["ether daddr @host drop"], []
    for family, hosts in host_sets(closed):
        asked = "arp daddr ip" if family == "ip" else "icmpv6 type nd-neighbor-solicit icmpv6 taddr"
        sent += [f"{family} daddr {hosts} drop", f"{asked} {hosts} drop"]
        received += [f"arp saddr ip {hosts} add @host {{ ether saddr }}"] if family == "ip" else []
    return FrameRules(sets, tuple(sent), tuple(received))


def host_sets(closed: Closed | None) -> list[tuple[str, str]]:
    """Return the sets in a joined card's rules that have the host's addresses, each with its family."""
    if closed is None:
        return []
    known = [(family, _elements(closed.neighbours, family)) for family in _FAMILIES]
    return [(family, f"@{_HOSTS}{suffix}") for family, suffix in _FAMILIES.items()] + [
        (family, words) for family, words in known if words
    ]


def _lists(closed: Closed) -> dict[str, tuple[Net, ...]]:
    return {_HOSTS: closed.hosts, _NETWORKS: closed.networks}


def _declared(name: str, networks: Iterable[Net], family: str) -> str:
    elements = _elements(networks, family)
    given = f"elements = {elements}; " if elements else ""
    return f"set {name}{_FAMILIES[family]} {{ type {_TYPES[family]}; flags interval; {given}}}"


def _elements(networks: Iterable[Net], family: str) -> str:
    """Return the elements of one family in the syntax of nftables, without overlaps, which it refuses."""
    v4 = [each for each in networks if isinstance(each, IPv4Network)]
    v6 = [each for each in networks if isinstance(each, IPv6Network)]
    merged = collapse_addresses(v4) if family == "ip" else collapse_addresses(v6)
    words = ", ".join(str(each) for each in merged)
    return f"{{ {words} }}" if words else ""


def parse(text: str) -> tuple[list[str], list[str]]:
    """Read the networks and the hosts; raises Invalid naming what is wrong with them."""
    try:
        given = json.loads(text)
        if not isinstance(given, dict) or given.keys() != {"networks", "hosts"}:
            raise Invalid("expected a JSON object with networks and hosts")
        lists = [[str(ip_network(str(each))) for each in given[key]] for key in ("networks", "hosts")]
    except (ValueError, TypeError) as error:
        raise Invalid(str(error)) from None
    return lists[0], lists[1]


def replace(networks: list[str], hosts: list[str]) -> None:
    """Close these, and no others, from now on; the rules are replaced in one step. Raises ToolError."""
    with unchanged():
        tables = json.loads(run("nft", "-json", "list", "sets"))["nftables"]
        changed = replacement([each["set"] for each in tables if "set" in each], networks, hosts)
        run("nft", "-f", "-", stdin=changed)
        _RECORD.write_text(json.dumps([networks, hosts]))


def replacement(sets: Iterable[dict[str, str]], networks: Iterable[str], hosts: Iterable[str]) -> str:
    """Return the input of `nft -f` that replaces the contents of our sets, chosen from all `sets`."""
    lists = {_HOSTS: [ip_network(each) for each in hosts], _NETWORKS: [ip_network(each) for each in networks]}
    elements_of = {
        f"{name}{suffix}": _elements(lists[name], of) for name in lists for of, suffix in _FAMILIES.items()
    }
    lines = []
    for each in sets:
        if each["table"].startswith("virtainer-") and each["name"] in elements_of:
            where, elements = f"{each['family']} {each['table']} {each['name']}", elements_of[each["name"]]
            lines += [f"flush set {where}", *([f"add element {where} {elements}"] if elements else [])]
    return "".join(f"{line}\n" for line in lines)


def main(arguments: list[str]) -> int:
    """Run the command: exit code 1 when the kernel refuses, 2 for wrong usage."""
    if len(arguments) != 1:
        print(_USAGE, file=sys.stderr)
        return 2
    if not Settings.from_env(os.environ).isolated:
        print("closed: nothing is closed to this VM: start it with CLOSED_NETWORKS or CLOSED_HOSTS", file=sys.stderr)
        return 1
    try:
        replace(*parse(arguments[0]))
    except Invalid as error:
        print(f"closed: {error}\n{_USAGE}", file=sys.stderr)
        return 2
    except ToolError as error:
        print(f"closed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
