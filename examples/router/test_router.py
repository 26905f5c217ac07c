"""A router between two networks: it assigns addresses in the office, and a route from there to the lab."""

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from pytest_virtainers import VM

DHCP_SERVER = """
[Match]
Name={device}

[Network]
Address={office}
DHCPServer=yes

[DHCPServer]
PoolOffset=50
PoolSize=50
EmitDNS=no
EmitRouter=no
SendOption=121:string:{route}
"""


def classless_route(to: IPv4Network, via: IPv4Address) -> str:
    """Return a route as DHCP sends it (RFC 3442), with escapes as systemd reads them."""
    significant = to.network_address.packed[: -(-to.prefixlen // 8)]
    return "".join(f"\\x{byte:02x}" for byte in (to.prefixlen, *significant, *via.packed))


@pytest.fixture
def machines(vms: Mapping[str, VM]) -> tuple[VM, VM, VM]:
    """Return router, desk and server; the desk's cable is plugged in when the router is ready."""
    router, desk, server = vms.values()
    desk.nics.link_down(desk.nics["office"])

    device = router.nics["office"].device
    office, lab = (IPv4Interface(router.nics[name].addresses[0]) for name in ("office", "lab"))
    route = classless_route(lab.network, office.ip)
    settings = DHCP_SERVER.format(device=device, office=office, route=route)
    router.write_text("/etc/systemd/network/60-office.network", settings)
    router.run(f"sysctl net.ipv4.ip_forward=1 && networkctl reload && networkctl up {device}", sudo=True)
    server.run(f"ip route add {office.network} via {lab.ip}", sudo=True)

    desk.nics.link_up(desk.nics["office"])
    desk.wait_until_succeeds(f"ip route show {lab.network} | grep 'via {office.ip}'")
    return router, desk, server


def test_the_desk_has_its_address_from_the_router(machines: tuple[VM, VM, VM]) -> None:
    router, desk, _ = machines
    status = router.run(["networkctl", "status", "--json=short", router.nics["office"].device], sudo=True).stdout
    (lease,) = json.loads(status)["DHCPServer"]["Leases"]
    assert lease["Hostname"] == "desk"
    address = IPv4Address(bytes(lease["Address"]))
    assert f" {address}/24 " in desk.run(f"ip address show dev {desk.nics['office'].device}").stdout


def test_only_the_router_leads_to_the_lab(machines: tuple[VM, VM, VM]) -> None:
    router, desk, server = machines
    ping = f"ping -c1 -W5 {server.nics['lab'].ip}"
    assert "ttl=63" in desk.wait_until_succeeds(ping).stdout  # one less than the server has sent

    router.nics.link_down(router.nics["lab"])
    assert not desk.run(ping, check=False)
    router.nics.link_up(router.nics["lab"])
    desk.wait_until_succeeds(ping)

    router.run("sysctl net.ipv4.ip_forward=0", sudo=True)
    assert not desk.run(ping, check=False)
