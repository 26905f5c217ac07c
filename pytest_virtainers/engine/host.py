"""The network of the host on which this process runs; routes and addresses are known on Linux only."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.support.forks import close_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

_LOCAL = "/32 host LOCAL"
_GLOBAL = "00"  # linux/include/net/ipv6.h: the scope, as /proc/net/if_inet6 shows it
_NEW_ADDRESSES = 0x10 | 0x100  # linux/rtnetlink.h: RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_MESSAGE_BYTES = 65536
_SETTLE_SECONDS = 0.1  # a new interface gets several addresses


def networks() -> list[IPv4Network]:
    """List the networks to which this host has routes, without the default route."""
    # The kernel writes addresses and masks as numbers in the host's byte order.
    rows = [line.split() for line in _lines("route")[1:]]
    routes = [(bytes.fromhex(row[1])[::-1], bytes.fromhex(row[7])[::-1]) for row in rows]
    return [IPv4Network((net, int.from_bytes(mask).bit_count())) for net, mask in routes if any(mask)]


def addresses() -> list[str]:
    """List its addresses, except loopback and link-local ones."""
    lines = _lines("fib_trie")  # an address is one line before its type
    v4 = {before.split()[-1] for before, line in pairwise(lines) if _LOCAL in line}
    rows = [line.split() for line in _lines("if_inet6")]
    v6 = {str(IPv6Address(int(row[0], 16))) for row in rows if row[3] == _GLOBAL}
    return sorted(each for each in v4 | v6 if not each.startswith("127."))


def is_member_of(interface: IPv4Interface) -> bool:
    """Return whether this host is a member of that network, so that it sends from an address in it.

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


class AddressWatch:
    """Calls a function, in a thread, whenever an address of this host is added or removed; on Linux only.

    Args:
        changed: called once for changes that happen together.
    """

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed
        self._stop, self._stopped = map(close_in_child, socket.socketpair())  # a child's copies would keep it open
        with contextlib.suppress(AttributeError, OSError):  # another system, or one that forbids it
            news = close_in_child(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE))
            news.bind((0, _NEW_ADDRESSES))
            news.setblocking(False)
            threading.Thread(target=self._follow, args=(news,), name="addresses", daemon=True).start()

    def _follow(self, news: socket.socket) -> None:
        with news, self._stopped:
            while self._stopped not in select.select([news, self._stopped], [], [])[0]:
                time.sleep(_SETTLE_SECONDS)
                with contextlib.suppress(OSError):  # it is empty, or has overflowed
                    while news.recv(_MESSAGE_BYTES):
                        pass
                self._changed()

    def close(self) -> None:
        """Stop calling it; a running call continues."""
        self._stop.close()
