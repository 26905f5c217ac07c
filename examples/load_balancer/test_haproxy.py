"""haproxy in front of two web servers: it leaves one out while its cable is unplugged, and then uses it again."""

import urllib.request
from collections.abc import Mapping

import pytest

from pytest_virtainers import VM

BALANCER = """
defaults
    mode http
    option redispatch
    timeout connect 10s
    timeout client 30s
    timeout server 30s
    timeout check 10s

frontend web
    bind :80
    default_backend servers

backend servers
    option httpchk GET /
    default-server check inter 5s fall 2 rise 2
    server red red:80
    server blue blue:80
"""
SERVER = """
[Service]
ExecStart=/usr/bin/python3 -m http.server 80 --directory /srv

[Install]
WantedBy=multi-user.target
"""


def install(vm: VM, balancer: str = BALANCER, server: str = SERVER) -> None:
    """Prepare a machine for either role: all three are clones of one template."""
    vm.run("systemctl disable --now haproxy", sudo=True)
    vm.write_text("/etc/haproxy/haproxy.cfg", balancer)
    vm.write_text("/etc/systemd/system/server.service", server)
    vm.run("systemctl daemon-reload", sudo=True)


pytestmark = [
    pytest.mark.virtainer("red"),
    pytest.mark.virtainer("blue"),
    pytest.mark.virtainer("balancer"),
    pytest.mark.virtainer(ram="512M", disk="3G", packages=["haproxy"], prepare=install),
]


@pytest.fixture
def cluster(vms: Mapping[str, VM]) -> Mapping[str, VM]:
    for name in ("red", "blue"):
        vms[name].write_text("/srv/index.html", name)
        vms[name].run("systemctl enable --now server", sudo=True)
    for name in ("red", "blue"):
        vms[name].wait_for_port(80)
    vms["balancer"].run("systemctl start haproxy", sudo=True)
    return vms


def answers(url: str, count: int = 6) -> set[str]:
    """Send a few requests; each must be answered."""
    found = set()
    for _ in range(count):
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310  (an address of ours)
            found.add(answer.read().decode())
    return found


def test_a_server_without_its_cable_gets_no_requests(cluster: Mapping[str, VM]) -> None:
    balancer, red = cluster["balancer"], cluster["red"]
    with balancer.forward(80) as url:
        assert answers(url) == {"red", "blue"}

        red.nics.link_down()
        balancer.wait_until_succeeds("journalctl -u haproxy | grep 'servers/red is DOWN'", sudo=True)
        assert answers(url) == {"blue"}

        red.nics.link_up()
        balancer.wait_until_succeeds("journalctl -u haproxy | grep 'servers/red is UP'", sudo=True)
        assert answers(url) == {"red", "blue"}
