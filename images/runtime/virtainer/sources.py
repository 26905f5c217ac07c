"""Which sender addresses the guest may use: all else that it sends is dropped in its container.

Neighbours know each other by address: a guest that forges one would speak for another VM, or for the engine's host.
"""

from __future__ import annotations

from ipaddress import ip_interface
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TABLE = "virtainer-sources"
# Before a guest has an address, and in IPv6 always.
_UNSPECIFIED = {"ip": ("0.0.0.0",), "ip6": ("::", "fe80::/10")}  # noqa: S104  (no socket is bound)
_TAGGED = "0x8100, 0x88a8, 0x9100"  # VLANs; receivers look into a second tag, as the kernel does into the first one


def rules(tap: str, guest: Sequence[str], inner: Sequence[str]) -> str:
    """Return the input of `nft -f` for the first card.

    Nothing but the guest's own addresses comes in, not even to the container itself; and nothing leaves with an inner
    address: packets that belong to no connection have no NAT.

    Args:
        tap: its interface in the container.
        guest: its IPv4 and its IPv6 address.
        inner: the networks of those.
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
        mac: of the card.
        addresses: that the engine has given it; empty: any but the host's.
        hosts: the host's, as a family (`ip`, `ip6`) and a set each.
        whole: whether a family in which it has been given none is closed, too.
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
    """Return the statements that drop what these senders send, or say of themselves."""
    said = "arp saddr ip" if family == "ip" else "icmpv6 type nd-neighbor-advert icmpv6 taddr"
    return f"{family} saddr {which} drop", f"{said} {which} drop"
