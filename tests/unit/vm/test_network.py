"""Addresses of VMs on a network."""

from ipaddress import IPv4Address

import pytest

from pytest_virtainers.errors import SpecError
from pytest_virtainers.vm.network import Network


def test_addresses_must_be_in_the_subnet(network: Network) -> None:
    assert network.port("web", 7).address == "10.1.0.7"
    assert network.port("web", IPv4Address("10.1.0.9")).address == "10.1.0.9"
    assert network.port("web", "dhcp").address is network.port("web", None).address is None
    assert network.port("web", None, first=True).aliases == ("web", "web.lab")
    assert network.port("web", None).aliases == ("web.lab",)
    with pytest.raises(SpecError, match=r"ip=255: the subnet 10\.1\.0\.0/24 of the network lab has no such address"):
        network.port("web", 255)
    with pytest.raises(SpecError, match=r"web: ip=10\.2\.0\.1: it is not in the subnet 10\.1\.0\.0/24"):
        network.port("web", IPv4Address("10.2.0.1"))
