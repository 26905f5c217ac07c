"""The network of the host on which this process runs (Linux; elsewhere nothing is known)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address
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


def _lines(table: str) -> list[str]:
    try:
        return Path("/proc/net", table).read_text().splitlines()
    except OSError:
        return []
