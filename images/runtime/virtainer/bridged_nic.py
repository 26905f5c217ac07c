"""Network cards that take over an interface of the container, so that the guest itself is on its network (layer 2).

The interface keeps its MAC, which the card also gets: some networks (macvlan) pass no other. It loses its addresses,
and all frames bypass the container's kernel, between the interface and a tap, both ways: ARP, multicast, IPv6, DHCP.
There is no bridge, as that would need the MAC for itself; and `fwd` is in kernels that lack tc's mirred.

Where networks are bridges of the host, many hosts pass bridged frames through their firewall
(bridge-nf-call-iptables), which drops or rewrites what it does not know: DHCP, addresses of other networks, or
everything. So frames can be hidden from it: they pass the bridge with an EtherType for local experiments (IEEE 802)
in place of that of IP. Such a card may send from any address, as a router does; all others only from their own
(virtainer.sources).
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from virtainer import interfaces, isolation, network, sources
from virtainer.protocol import HIDDEN_ETHERTYPES
from virtainer.tools import run

if TYPE_CHECKING:
    from virtainer.isolation import Closed

_PRIORITY = 0  # faults (virtainer.link_faults) come before
_HIDDEN = {f"0x{seen:04x}": f"0x{hidden:04x}" for seen, hidden in HIDDEN_ETHERTYPES.items()}
_ETHERTYPE = "@ll,96,16"  # as `ether type` cannot be set


_RECORDS = Path("/run/virtainer")
_ARP = Path("/proc/net/arp")
_ASK_SECONDS = 0.3
_COMPLETE = 2  # ATF_COM, linux/if_arp.h


class Taken(NamedTuple):
    """An interface as it was before a card took it over for the first time."""

    mac: str
    link: str
    addresses: tuple[str, ...]  # with prefix lengths
    mtu: int
    host: tuple[str, ...] = ()  # MACs of the engine's host on that network, as far as they are known


def tap_name(mac: str) -> str:
    """Return the name of a card's tap, which contains the MAC, so that both are found without a record."""
    return f"vt{mac.replace(':', '')}"


def exists(mac: str) -> bool:
    """Return whether a card with this MAC is joined."""
    return interfaces.exists(tap_name(mac))


def look(mac: str, max_mtu: int, *, for_host: bool) -> Taken:
    """Return the interface with this MAC; with `for_host`, look for the host, too. Raises interfaces.Missing."""
    link = interfaces.find(mac)
    addresses = global_addresses(json.loads(run("ip", "-json", "address", "show", "dev", link)))
    taken = Taken(mac, link, addresses, min(interfaces.mtu(link), max_mtu))
    record = _RECORDS / f"{tap_name(mac)}.json"
    if addresses:
        taken = taken._replace(host=_ask_for_host(taken) if for_host else ())
        record.write_text(json.dumps([taken.addresses, taken.host]))
    elif record.exists():  # an earlier card has left it without
        addresses, host = (tuple(each) for each in json.loads(record.read_text()))
        taken = taken._replace(addresses=addresses, host=host)
    return taken


def _ask_for_host(taken: Taken) -> tuple[str, ...]:
    """Resolve the first addresses of the network while the container is still on it."""
    firsts = {str(net[1]) for net in (ip_interface(each).network for each in taken.addresses) if net.version == 4}  # noqa: PLR2004
    for first in firsts:
        _knock(first)
    deadline = time.monotonic() + _ASK_SECONDS
    found: dict[str, str] = {}
    while firsts and not found and time.monotonic() < deadline:
        time.sleep(0.002)
        found = {
            row[0]: row[3]
            for row in (line.split() for line in _ARP.read_text().splitlines()[1:])
            if row[0] in firsts and row[5] == taken.link and int(row[2], 16) & _COMPLETE
        }
    return tuple(found.values())


def _knock(address: str) -> None:
    """Make the kernel resolve an address by sending a packet there (port 9 discards it)."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"", (address, 9))


def global_addresses(described: list[dict[str, Any]]) -> tuple[str, ...]:
    """Read the addresses that others can reach out of `ip -json address show`."""
    return tuple(
        f"{each['local']}/{each['prefixlen']}"
        for link in described
        for each in link.get("addr_info", ())
        if each.get("scope") == "global"
    )


def connect(taken: Taken, closed: Closed | None = None, *, hidden: bool = False, any_sender: bool = False) -> None:
    """Connect the interface and an existing tap; the container is no longer on that network.

    The card sends nothing to what is `closed`. With `hidden`, the host's firewall sees no IP in its frames. It sends
    only from the addresses of the interface, unless it is hidden or may be `any_sender`.

    Raises ToolError.
    """
    ipv6 = Path("/proc/sys/net/ipv6/conf", taken.link).exists()
    # The rules come first, so that no frame announces the removal of the addresses.
    run("nft", "-f", "-", stdin=rules(taken, closed, hidden=hidden, any_sender=any_sender))
    # Docker may have set the default route to this network when it was connected.
    run("ip", "-batch", "-", stdin=link_commands(taken, ipv6=ipv6) + _way_out())
    for family in ("-4", "-6") if ipv6 else ("-4",):  # IPv6 keeps a default route without an address
        run("ip", family, "route", "flush", "dev", taken.link)


def _way_out() -> str:
    """Return the input of `ip -batch` for the recorded default routes, except those of networks that were lost."""
    lines = network.WAY_OUT.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if interfaces.exists(line.partition(" dev ")[2].split()[0]))


def disconnect(mac: str) -> None:
    """Remove the rules; the tap disappears when QEMU closes it. The interface stays without addresses."""
    run("nft", "-f", "-", stdin=_without_tables(mac))


def give_back(taken: Taken) -> None:
    """Undo `connect`, as far as it got, with the addresses."""
    disconnect(taken.mac)
    for address in taken.addresses:
        run("ip", "address", "replace", address, "dev", taken.link)


def link_commands(taken: Taken, *, ipv6: bool) -> str:
    """Return the input of `ip -batch`. The kernel makes no IPv6 addresses for either end."""
    tap = tap_name(taken.mac)
    silent = "".join(f"link set dev {name} addrgenmode none\n" for name in (taken.link, tap)) if ipv6 else ""
    return (
        f"{silent}"
        f"address flush dev {taken.link}\n"
        f"link set dev {taken.link} promisc on up\n"
        f"link set dev {tap} mtu {taken.mtu} up\n"
    )


def rules(taken: Taken, closed: Closed | None = None, *, hidden: bool = False, any_sender: bool = False) -> str:
    """Return the input of `nft -f`: two tables for each card.

    The kernel's own packets are dropped: it would report multicast groups to routers even without an address.
    """
    tap, table = tap_name(taken.mac), _table(taken.mac)
    more = isolation.frame_rules(closed, taken.host)
    senders = () if hidden else _senders(taken, closed, any_sender=any_sender)
    hide, show = _hiding() if hidden else ((), ())
    sets = "".join(f"    {line}\n" for line in more.sets)
    to_guest, from_guest = (
        "".join(f"        {line}\n" for line in lines)
        for lines in ((*more.received, *show), (*senders, *more.sent, *hide))
    )
    return f"""\
{_without_tables(taken.mac)}\
table netdev {table} {{
{sets}\
    chain to_guest {{
        type filter hook ingress device "{taken.link}" priority {_PRIORITY}; policy accept;
{to_guest}\
        fwd to "{tap}"
    }}
    chain from_guest {{
        type filter hook ingress device "{tap}" priority {_PRIORITY}; policy accept;
{from_guest}\
        fwd to "{taken.link}"
    }}
}}
table inet {table} {{
    chain own {{
        type filter hook output priority filter; policy accept;
        oifname {{ "{taken.link}", "{tap}" }} drop
    }}
}}
"""


def _senders(taken: Taken, closed: Closed | None, *, any_sender: bool) -> tuple[str, ...]:
    addresses = () if any_sender else taken.addresses
    return sources.frame_rules(taken.mac, addresses, hosts=isolation.host_sets(closed), whole=closed is not None)


def _hiding() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the statements that hide sent frames, and those that show received ones; other IP is dropped."""
    hide = tuple(f"{_ETHERTYPE} {seen} {_ETHERTYPE} set {hidden}" for seen, hidden in _HIDDEN.items())
    show = tuple(f"{_ETHERTYPE} {hidden} {_ETHERTYPE} set {seen}" for seen, hidden in _HIDDEN.items())
    return hide, (f"{_ETHERTYPE} {{ {', '.join(_HIDDEN)} }} drop", *show)


def _table(mac: str) -> str:
    return f"virtainer-{mac.replace(':', '')}"


def _without_tables(mac: str) -> str:
    table = _table(mac)
    return "".join(f"table {family} {table}\ndelete table {family} {table}\n" for family in ("netdev", "inet"))
