"""The guest's network: a tap, NAT in both directions, DHCP and DNS.

The guest always has the same MAC and address, and the same gateway with the same MAC, so that one memory
snapshot fits every container. All that arrives at the container's addresses, whatever the protocol, goes to
the guest; what the guest sends out leaves with the container's address, and is dropped if it is not from the guest's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

from virtainer import dns, ipv6, sources
from virtainer.exit_reasons import End, Reason
from virtainer.protocol import GUEST_MAC, SSH_TCP_PORT
from virtainer.tools import ToolError, run

WAY_OUT = Path("/run/virtainer/way_out")
"""The input of `ip -batch` that restores the container's first default route when another network is joined."""
TAP = "virtainer0"  # not tap0, which is the outer interface in a rootless Podman's container
GATEWAY_MAC = "52:54:00:76:69:01"
MAX_MTU = 9000  # rootless Podman's own interface has 65520, more than emulated network cards accept

# In ms; arp(7). With a locktime, an address that changes again soon would be ignored.
_ASK_SOON = "base_reachable 200 delay_probe 50 retrans 50 locktime 0"
_SYS_NET = Path("/sys/class/net")
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x2, 0x1000  # linux/if_tun.h


class Network(NamedTuple):
    """The inner network of one VM."""

    cidr: str  # first three octets
    guest_name: str
    mtu: int
    uplink: str | None  # the container's interface with the default route
    ipv6: bool = False  # the guest's, too

    @property
    def gateway(self) -> str:
        """The address of the container's end."""
        return f"{self.cidr}.1"

    @property
    def guest(self) -> str:
        """The address of the guest."""
        return f"{self.cidr}.2"


def plan(cidr: str, guest_name: str) -> Network:
    """Examine the container's own network. Raises End when the inner one would overlap it."""
    links = {link.name: (link / "device").exists() for link in _SYS_NET.iterdir()}
    if looks_like_host(links):
        raise End(
            Reason.NETWORK,
            f"this looks like the host's own network ({', '.join(sorted(links))}): all that arrives here would be "
            "sent to the guest. Leave out --network host",
        )
    routes = Path("/proc/net/route").read_text()
    if taken := overlap(cidr, routes):
        raise End(
            Reason.NETWORK,
            f"CIDR={cidr} overlaps the container's own network {taken}: give another, such as -e CIDR=192.168.101",
        )
    uplink = default_link(routes)
    if uplink:
        _need_forwarding()
    mtu = int((_SYS_NET / uplink / "mtu").read_text()) if uplink else 1500
    return Network(cidr, guest_name, min(mtu, MAX_MTU), uplink, ipv6=bool(uplink and ipv6.usable(uplink)))


def looks_like_host(links: dict[str, bool]) -> bool:
    """Return whether this is a host's network, with hardware or bridges; `links` is name -> has hardware."""
    return any(hardware or name in {"docker0", "podman0", "cni0"} for name, hardware in links.items())


def overlap(cidr: str, routes: str) -> str | None:
    """Return the network in /proc/net/route that shares addresses with the inner one."""
    inner = IPv4Network(f"{cidr}.0/24")
    for _, destination, mask in _routes(routes):
        network = IPv4Network((destination, mask.bit_count()))
        if mask and network.overlaps(inner):
            return str(network)
    return None


def default_link(routes: str) -> str | None:
    """Return the interface of the default route in /proc/net/route, or else the first by name with a route."""
    found = [(mask != 0, name) for name, _, mask in _routes(routes)]
    return min(found)[1] if found else None


def _routes(table: str) -> list[tuple[str, int, int]]:
    """Return interface, destination and mask of each line; the kernel writes them in the host's byte order."""
    rows = [line.split() for line in table.splitlines()[1:]]
    return [(row[0], _address(row[1]), _address(row[7])) for row in rows]


def way_out(routes: str) -> str:
    """Return the input of `ip -batch` that restores the default route of /proc/net/route; empty without one."""
    rows = [line.split() for line in routes.splitlines()[1:]]
    found = [row for row in rows if _address(row[7]) == 0 and _address(row[2])]
    return "".join(
        f"route replace default via {IPv4Address(_address(row[2]))} dev {row[0]} metric {row[6]}\n"
        for row in found[:1]
    )


def neighbours(routes: str) -> set[str]:
    """Return the possible addresses of the engine's host on the networks in /proc/net/route.

    It is the gateway; on a network without a gateway, it has the first address, by the engines' choice.
    """
    rows = [line.split() for line in routes.splitlines()[1:]]
    ways_out = {str(IPv4Address(_address(row[2]))) for row in rows if _address(row[2])}
    firsts = {str(IPv4Address(address + 1)) for name, address, mask in _routes(routes) if mask and name != TAP}
    return ways_out | firsts


def connected(routes: str) -> set[str]:
    """Return the networks in /proc/net/route that the container itself is on, without the inner one."""
    rows = [line.split() for line in routes.splitlines()[1:]]
    return {
        str(IPv4Network((_address(row[1]), _address(row[7]).bit_count())))
        for row in rows
        if not _address(row[2]) and _address(row[7]) and row[0] != TAP
    }


def _address(word: str) -> int:
    return int.from_bytes(int(word, 16).to_bytes(4, "little"), "big")


def _need_forwarding() -> None:
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    if switch.read_text().strip() == "1":
        return
    with contextlib.suppress(OSError):  # writable only when privileged
        switch.write_text("1")
        return
    raise End(
        Reason.PRIVILEGE, "net.ipv4.ip_forward is 0 in this container: docker run --sysctl net.ipv4.ip_forward=1 …"
    )


def make_tap(name: str = TAP) -> int:
    """Create a tap without an address, and return its descriptor, for QEMU."""
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        # Without IFF_VNET_HDR: a snapshot can then be restored on backends that lack it.
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        raise End(
            Reason.NETWORK,
            f"cannot make the interface {name} through /dev/net/tun: {error.strerror}. "
            "Is there another virtainer in the same network namespace?",
        ) from None
    return tap


def build(network: Network, callers: set[str], more_rules: str = "") -> None:
    """Set the tap's address and rules; `callers` are those of `nft_rules`."""
    try:
        run("ip", "-batch", "-", stdin=link_commands(network))
        run("nft", "-f", "-", stdin=nft_rules(network, callers) + more_rules)
    except ToolError as error:
        raise End(Reason.NETWORK, f"cannot set up the guest's network: {error}") from None


def link_commands(network: Network) -> str:
    """Return the input of `ip -batch`.

    The bridge of a Podman network takes its MAC from its ports, so it may get another one whenever a container is
    added or removed, without an announcement. With the kernel's default times, packets there would be lost for half a
    minute.
    """
    tap = (
        f"link set dev {TAP} address {GATEWAY_MAC}\n"
        f"addr add {network.gateway}/24 dev {TAP}\n"
        f"{ipv6.link_commands(TAP, network.uplink, _ASK_SOON) if network.ipv6 and network.uplink else ''}"
        f"link set dev {TAP} mtu {network.mtu} up\n"
    )
    if network.uplink is None:
        return tap
    return f"{tap}ntable change name arp_cache dev {network.uplink} {_ASK_SOON}\n"


def nft_rules(network: Network, callers: set[str]) -> str:
    """Return the input of `nft -f`: separate tables, next to the engine's rules for its DNS.

    What comes from the addresses `callers` to the line's TCP port arrives in the container. `fib daddr type local` is
    any address of this container, those of networks joined later included. The last rule is for a guest that connects
    to its own container: the reply has to come back this way.
    """
    to_line = f"ip saddr {{ {', '.join(sorted(callers))} }} tcp dport {SSH_TCP_PORT} accept" if callers else ""
    return f"""\
table ip virtainer {{
    chain arriving {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr {network.gateway} accept
        {to_line}
        iifname != "lo" fib daddr type local dnat to {network.guest}
    }}
    chain leaving {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname != {{ "lo", "{TAP}" }} ip saddr {network.cidr}.0/24 masquerade
        oifname "{TAP}" ip saddr {network.guest} masquerade
    }}
}}
{ipv6.nft_rules(TAP) if network.ipv6 else ""}\
{sources.rules(TAP, (network.guest, ipv6.GUEST), (f"{network.cidr}.0/24", ipv6.NETWORK))}"""


def dnsmasq_argv(network: Network, names_port: int, *, names_only: bool = False) -> list[str]:
    """Return the command of the guest's DHCP and DNS server, which stays in the foreground.

    It asks the servers of the container's /etc/resolv.conf, such as the engine's, that knows the names of
    other containers; it answers from the container's /etc/hosts too, so `--add-host` reaches the guest.
    `names_port` is where dns.serve() listens. With `names_only` it is the only server, for names without dots, too;
    all other questions are refused.
    """
    fixed = f"{GUEST_MAC},{network.guest}{f',[{ipv6.GUEST}]' if network.ipv6 else ''}"
    return [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=dnsmasq",
        "--log-facility=-",
        "--quiet-dhcp",
        f"--interface={TAP}",
        "--except-interface=lo",
        "--bind-interfaces",
        f"--dhcp-range={network.cidr}.0,static",
        f"--dhcp-host={fixed},{network.guest_name},infinite",
        f"--dhcp-option=option:mtu,{network.mtu}",
        f"--dhcp-option=option:domain-search,{dns.DOMAIN}",
        f"--server=/{dns.DOMAIN}/127.0.0.1#{names_port}",
        *(("--no-resolv", f"--server=//127.0.0.1#{names_port}") if names_only else ()),
        *(ipv6.dnsmasq_options(dns.DOMAIN) if network.ipv6 else ()),
        "--dhcp-authoritative",
        "--leasefile-ro",
        "--no-ping",  # otherwise it waits three seconds for an answer before its first offer
    ]
