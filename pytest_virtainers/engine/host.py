"""The network of the host on which this process runs; its routes and addresses are known on Linux only."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address
from itertools import pairwise
from pathlib import Path

_LOCAL = "/32 host LOCAL"
_GLOBAL = "00"  # linux/include/net/ipv6.h: the scope, as /proc/net/if_inet6 shows it


def networks() -> list[IPv4Network]:
    """List the networks to which it has routes, without the default route."""
    # The kernel writes addresses and masks as numbers in the host's byte order.
    rows = [line.split() for line in _lines("route")[1:]]
    routes = [(bytes.fromhex(row[1])[::-1], bytes.fromhex(row[7])[::-1]) for row in rows]
    return [IPv4Network((net, int.from_bytes(mask).bit_count())) for net, mask in routes if any(mask)]


def addresses() -> list[str]:
    """List its addresses, but not those of its loopback nor those that count on one link only."""
    lines = _lines("fib_trie")  # an address comes one line before what it is for
    v4 = {before.split()[-1] for before, line in pairwise(lines) if _LOCAL in line}
    rows = [line.split() for line in _lines("if_inet6")]
    v6 = {str(IPv6Address(int(row[0], 16))) for row in rows if row[3] == _GLOBAL}
    return sorted(each for each in v4 | v6 if not each.startswith("127."))


def is_beside(interface: IPv4Interface) -> bool:
    """Tell whether this host is itself on that network: what it sends there then leaves from an address in it.

    Nothing is sent. An answer would prove less: some networks accept or refuse connections to any address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(interface.ip), 9))
        except OSError:
            return False
        return IPv4Address(sock.getsockname()[0]) in interface.network


def _lines(table: str) -> list[str]:
    try:
        return Path("/proc/net", table).read_text().splitlines()
    except OSError:
        return []
