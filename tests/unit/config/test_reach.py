"""Private networks and metadata services that are closed to VMs, and what opens them."""

import itertools
from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_virtainers.config import reach

POOL = IPv4Network("10.213.0.0/16")


def is_closed(address: str, opened: str = "none", others: tuple[str, ...] = ()) -> bool:
    closed = reach.closed(reach.networks(opened), always=[POOL], others=[ip_network(each) for each in others])
    return any(ip_address(address) in network for network in closed)


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.254",
        "192.168.1.1",
        "100.64.0.1",
        "198.19.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "fd12::1",
        "fd00:ec2::254",
        "fe80::1",
    ],
)
def test_private_networks_and_metadata_services_are_closed(address: str) -> None:
    assert is_closed(address)


@pytest.mark.parametrize("address", ["203.0.113.7", "192.0.2.7", "198.51.100.7", "8.8.8.8", "2001:db8::1", "2600::1"])
def test_the_internet_and_documentation_addresses_are_open(address: str) -> None:
    assert not is_closed(address)


def test_named_networks_are_opened_and_no_others() -> None:
    opened = "10.20.0.0/16, 192.168.7.4,fd12::/16"
    assert not any(is_closed(each, opened) for each in ("10.20.1.1", "192.168.7.4", "fd12::1"))
    assert all(is_closed(each, opened) for each in ("10.21.0.1", "192.168.7.5", "fd13::1"))


def test_private_opens_all_private_networks_but_no_metadata_service() -> None:
    for opened in ("private", "0.0.0.0/0,::/0"):
        assert not any(is_closed(each, opened) for each in ("10.1.1.1", "172.20.1.1", "100.64.1.1", "fd12::1"))
        assert all(is_closed(str(each[0]), opened) for each in reach.METADATA)


def test_a_metadata_service_is_opened_by_its_address_or_by_a_part_of_its_own_range() -> None:
    assert not is_closed("169.254.169.254", "169.254.169.254")
    assert is_closed("169.254.169.253", "169.254.169.254")
    assert not is_closed("169.254.170.2", "169.254.0.0/16")
    assert not is_closed("100.100.100.200", "100.100.100.200/32")


@pytest.mark.parametrize("opened", ["private", "10.0.0.0/8", "10.213.7.0/24", "0.0.0.0/0"])
def test_the_networks_of_runs_are_never_opened(opened: str) -> None:
    assert is_closed("10.213.7.1", opened)


def test_the_engines_other_networks_are_closed_unless_they_are_named() -> None:
    assert is_closed("203.0.113.130", "none", ("203.0.113.128/25",))
    assert not is_closed("203.0.113.130", "203.0.113.128/26", ("203.0.113.128/25",))
    assert is_closed("203.0.113.200", "203.0.113.128/26", ("203.0.113.128/25",))


@pytest.mark.parametrize("value", ["", "public", "10.0.0.1/8", "10.0.0.0/8;192.168.0.0/16", "10.0.0.0/8,", 10, None])
def test_wrong_reach_is_refused_with_the_allowed_forms(value: object) -> None:
    with pytest.raises(ValueError, match=r"^none, private, or networks with commas between them are needed"):
        reach.networks(value)


_v4 = st.builds(
    lambda number, bits: IPv4Network((number >> (32 - bits) << (32 - bits), bits)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)


@given(st.lists(_v4, max_size=4), st.lists(_v4, max_size=4))
def test_an_address_in_any_list_is_closed(opened: list[IPv4Network], others: list[IPv4Network]) -> None:
    closed = reach.closed(opened, always=[POOL], others=others)
    edges = itertools.chain.from_iterable((each[0], each[-1]) for each in (*opened, *others, *reach.PRIVATE, POOL))
    for address in edges:
        if address.version == 4:
            metadata = [each for each in reach.METADATA if address in each]
            by_name = any(
                address in each and any(each.version == m.version and each.subnet_of(m) for m in metadata)
                for each in opened
            )
            is_private = any(address in each for each in (*reach.PRIVATE, *others)) and not any(
                address in each for each in opened
            )
            wanted = address in POOL or (bool(metadata) and not by_name) or is_private
            assert any(address in each for each in closed) == wanted
