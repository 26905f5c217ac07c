"""The sender addresses that the guest may use: frames with others are dropped in its container.

Neighbours identify each other by address: a guest that forges one could impersonate another VM, or the engine's host.
"""

from __future__ import annotations

from ipaddress import ip_interface
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TABLE = "virtainer-sources"
# Before a guest has an address, and in IPv6 always.
_UNSPECIFIED = {"ip": ("0.0.0.0",), "ip6": ("::", "fe80::/10")}  # noqa: S104  (no socket is bound)
_TAGGED = "0x8100, 0x88a8, 0x9100"  # VLANs; receivers interpret a second tag, as the kernel does the first one


def rules(tap: str, guest: Sequence[str], inner: Sequence[str]) -> str:
    """Return the input of `nft -f` for the first card.

    Only packets from the guest's own addresses come in, even those to the container itself; and none leave with an
    inner address: packets that belong to no connection have no NAT.

    Args:
        tap: its interface in the container.
        guest: the guest's IPv4 and IPv6 addresses.
        inner: the networks of these addresses.
    """
    ipv4, ipv6 = (", ".join((*_UNSPECIFIED[family], own)) for family, own in zip(("ip", "ip6"), guest, strict=True))
    return f"""\
table inet {_TABLE} {{
    chain sent {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{tap}" ip saddr != {{ {ipv4} }} drop
        iifname "{tap}" ip6 saddr != {{ {ipv6} }} drop
    }}
    chain leaving {{
        type filter hook postrouting priority srcnat + 10; policy accept;
        oifname != {{ "lo", "{tap}" }} ip saddr {inner[0]} drop
        oifname != {{ "lo", "{tap}" }} ip6 saddr {inner[1]} drop
    }}
}}
"""


def frame_rules(
    mac: str, addresses: Iterable[str], *, hosts: Iterable[tuple[str, str]] = (), whole: bool = True
) -> tuple[str, ...]:
    """Return the statements of nftables for what a joined card sends.

    Args:
        mac: the card's MAC.
        addresses: the addresses that the engine has assigned to it; empty: any except the host's.
        hosts: the host's addresses, each as a family (`ip`, `ip6`) and a set.
        whole: whether a family without an assigned address is closed, too.
    """
    given = [ip_interface(each).ip for each in addresses]
    lines = [
        f"ether saddr != {mac} drop",
        f"meta protocol {{ {_TAGGED} }} drop",
        f"arp saddr ether != {mac} drop",
    ]
    for family, version in (("ip", 4), ("ip6", 6)):
        own = [str(each) for each in given if each.version == version]
        if own or (given and whole):
            lines += _senders(family, f"!= {{ {', '.join((*_UNSPECIFIED[family], *own))} }}")
        else:
            lines += [line for of, closed in hosts if of == family for line in _senders(family, closed)]
    return tuple(lines)


def _senders(family: str, which: str) -> tuple[str, str]:
    """Return the statements that drop packets from these senders, and ARP and NDP messages about them."""
    said = "arp saddr ip" if family == "ip" else "icmpv6 type nd-neighbor-advert icmpv6 taddr"
    return f"{family} saddr {which} drop", f"{said} {which} drop"
