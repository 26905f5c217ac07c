"""A router between two networks: it gives out addresses in the office, and the way from there to the lab."""

from collections.abc import Mapping
from ipaddress import IPv4Interface

import pytest

from pytest_virtainers import VM

DNSMASQ = """
port=0
interface={device}
dhcp-range={office.network[50]},{office.network[99]}
dhcp-option=option:classless-static-route,{lab.network},{office.ip}
"""


@pytest.fixture
def machines(vms: Mapping[str, VM]) -> tuple[VM, VM, VM]:
    """Give router, desk and server; the desk's cable is put in when the router is there."""
    router, desk, server = vms.values()
    desk.link_down(desk.nics["office"])

    device = router.nics["office"].device
    office, lab = (IPv4Interface(router.nics[name].addresses[0]) for name in ("office", "lab"))
    router.write_text("/etc/dnsmasq.conf", DNSMASQ.format(device=device, office=office, lab=lab))
    router.run("sysctl net.ipv4.ip_forward=1 && systemd-run dnsmasq --keep-in-foreground", sudo=True)
    server.run(f"ip route add {office.network} via {lab.ip}", sudo=True)

    desk.link_up(desk.nics["office"])
    desk.wait_until_succeeds(f"ip route show {lab.network} | grep 'via {office.ip}'")
    return router, desk, server


def test_the_desk_has_its_address_from_the_router(machines: tuple[VM, VM, VM]) -> None:
    router, desk, _ = machines
    card = desk.nics["office"]
    _, mac, address, name, _ = router.read_text("/var/lib/misc/dnsmasq.leases").split()
    assert (mac, name) == (card.mac, "desk")
    assert f" {address}/24 " in desk.run(f"ip address show dev {card.device}").stdout


def test_only_the_router_leads_to_the_lab(machines: tuple[VM, VM, VM]) -> None:
    router, desk, server = machines
    ping = f"ping -c1 -W2 {server.nics['lab'].ip}"
    assert "ttl=63" in desk.run(ping).stdout  # one less than the server has sent

    router.link_down(router.nics["lab"])
    assert not desk.run(ping, check=False)
    router.link_up(router.nics["lab"])
    desk.wait_until_succeeds(ping)

    router.run("sysctl net.ipv4.ip_forward=0", sudo=True)
    assert not desk.run(ping, check=False)
