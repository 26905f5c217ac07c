"""The guest's IPv6, if the container has IPv6: as for IPv4, an inner network that is always the same, and NAT.

The guest learns it from router advertisements and DHCPv6, so that one whose memory was saved in a container without
IPv6 gets it, too. Formats of /proc/net: proc_net(5), and fs/seq_file users in the kernel's net/ipv6.
"""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

from virtainer.events import note

GATEWAY, GUEST, NETWORK = "fd76:6972:7461::1", "fd76:6972:7461::2", "fd76:6972:7461::/64"
_LINK_LOCAL = "fe80::1"  # of the gateway: routers are known by such an address, so it is the same everywhere

_PROC_NET, _CONF = Path("/proc/net"), Path("/proc/sys/net/ipv6/conf")
_GLOBAL = "00"  # scope in if_inet6; unique local addresses have it, too
_REJECT = 0x200  # RTF_REJECT, linux/route.h


def usable(uplink: str) -> bool:
    """Return whether the guest can have IPv6: the way out has an address, and the container forwards packets."""
    if uplink not in (name for _, name in _addresses()):
        return False
    missing = [
        f"--sysctl net.ipv6.conf.{switch.replace('/', '.')}={value}"
        for switch, value in (("all/forwarding", "1"), ("default/disable_ipv6", "0"))
        if not _switched(_CONF / switch, value)
    ]
    if missing:
        note(f"no IPv6 for the guest, though the container has it: docker run {' '.join(missing)} …")
    return not missing


def _switched(switch: Path, value: str) -> bool:
    try:
        if switch.read_text().strip() != value:
            switch.write_text(value)  # only when privileged
    except OSError:
        return False
    return True


def connected() -> set[str]:
    """Return the container's own networks, with prefix lengths."""
    return {str(IPv6Network((address, length), strict=False)) for (address, length), _ in _addresses()}


def neighbours() -> set[str]:
    """Return the possible addresses of the engine's host, as network.neighbours() does."""
    return {gateway for gateway, _ in _defaults()} | {str(IPv6Network(each)[1]) for each in connected()}


def way_out() -> str:
    """Return the input of `ip -batch` that restores the default route; empty without one."""
    return "".join(f"route replace ::/0 via {gateway} dev {name}\n" for gateway, name in _defaults()[:1])


def _defaults() -> list[tuple[str, str]]:
    """Return gateway and interface of each default route."""
    found = []
    for line in _read("ipv6_route"):
        destination, length, _, _, gateway, _, _, _, flags, name = line.split()
        if int(destination, 16) == int(length, 16) == 0 and int(gateway, 16) and not int(flags, 16) & _REJECT:
            found.append((str(IPv6Address(int(gateway, 16))), name))
    return found


def _addresses() -> list[tuple[tuple[int, int], str]]:
    """Return address, prefix length and interface of each global address; our own network does not count."""
    rows = (line.split() for line in _read("if_inet6"))
    inner = int(IPv6Address(GATEWAY))
    return [
        ((int(address, 16), int(length, 16)), name)
        for address, _, length, scope, _, name in rows
        if scope == _GLOBAL and int(address, 16) != inner
    ]


def _read(name: str) -> list[str]:
    try:
        return (_PROC_NET / name).read_text().splitlines()
    except OSError:  # this kernel has no IPv6
        return []


def link_commands(tap: str, uplink: str, ask_soon: str) -> str:
    """Return the input of `ip -batch` before the tap is up; without `nodad` it would wait for two seconds."""
    return (
        f"link set dev {tap} addrgenmode none\n"
        f"addr add {_LINK_LOCAL}/64 dev {tap} nodad\n"
        f"addr add {GATEWAY}/64 dev {tap} nodad\n"
        f"ntable change name ndisc_cache dev {uplink} {ask_soon}\n"
    )


def nft_rules(tap: str) -> str:
    """Return the IPv6 half of network.nft_rules(). Packets to link-local addresses are the container's."""
    return f"""\
table ip6 virtainer {{
    chain arriving {{
        type nat hook prerouting priority dstnat; policy accept;
        ip6 daddr {{ {GATEWAY}, fe80::/10 }} accept
        iifname != "lo" fib daddr type local dnat to {GUEST}
    }}
    chain leaving {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname != {{ "lo", "{tap}" }} ip6 saddr {NETWORK} masquerade
        oifname "{tap}" ip6 saddr {GUEST} masquerade
    }}
}}
"""


def dnsmasq_options(search: str) -> list[str]:
    """Return dnsmasq's options for it; the guest's address goes into its `--dhcp-host`."""
    return [
        *("--enable-ra", "--quiet-ra", "--quiet-dhcp6"),
        f"--dhcp-range={NETWORK.removesuffix('/64')},static,64",
        f"--dhcp-option=option6:domain-search,{search}",
    ]
