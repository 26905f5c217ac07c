from ipaddress import IPv4Network

from pytest_virtainers.engine import subnets


def test_free_subnets_do_not_overlap_with_taken_ones() -> None:
    half = IPv4Network("10.213.0.0/17")
    chosen = subnets.free([half, IPv4Network("172.17.0.0/16")], 20)
    assert len(chosen) == len(set(chosen)) == 20
    assert not any(each.overlaps(half) for each in chosen)
    assert all(each.subnet_of(subnets.POOL) and each.prefixlen == 24 for each in chosen)


def test_a_full_pool_has_no_free_subnets() -> None:
    assert subnets.free([IPv4Network("10.0.0.0/8")], 20) == []


def test_the_inner_network_of_containers_is_not_in_the_pool() -> None:
    assert not subnets.POOL.overlaps(IPv4Network("192.168.100.0/24"))
