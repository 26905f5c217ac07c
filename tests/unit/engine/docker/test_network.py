import json
import socket
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from pytest_virtainers.engine import ownership, subnets
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.plan import NetworkPlan
from pytest_virtainers.errors import EngineError
from tests.unit.fake_engine import DOCKER, PODMAN, Answer, serving


def test_subnets_keep_clear_of_what_is_taken() -> None:
    half = IPv4Network("10.213.0.0/17")
    chosen = subnets.free([half, IPv4Network("172.17.0.0/16")], 20)
    assert len(chosen) == len(set(chosen)) == 20
    assert not any(each.overlaps(half) for each in chosen)
    assert all(each.subnet_of(subnets.POOL) and each.prefixlen == 24 for each in chosen)


def test_a_pool_that_is_all_taken_has_none() -> None:
    assert subnets.free([IPv4Network("10.0.0.0/8")], 20) == []


def test_the_guests_inner_network_is_not_in_the_pool() -> None:
    assert not subnets.POOL.overlaps(IPv4Network("192.168.100.0/24"))


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hang_up, r"\('Connection aborted\.', .*\)"),
        ((500, {"message": "no space left on device"}), "no space left on device\nThe engine's disk is full"),
    ],
    ids=["hangs up", "refuses"],
)
def test_what_keeps_a_network_from_being_made_is_told_in_words(answer: Answer, words: str) -> None:
    with serving({"POST /networks/create": answer}) as server:
        engine = DockerEngine(server.url)
        with pytest.raises(EngineError, match=rf"^creating network lab failed: podman 4\.9 at tcp\S+ said: {words}"):
            engine.create_network(NetworkPlan("lab"), "run")
        engine.close()


def test_the_next_subnet_is_tried_when_one_is_taken() -> None:
    with serving({"POST /networks/create": (400, {"message": "Pool overlaps with other one"})}) as server:
        engine = DockerEngine(server.url)
        with pytest.raises(EngineError, match=r"creating network lab failed: 20 subnets .* were tried, and all are"):
            engine.create_network(NetworkPlan("lab"), "run")
        assert server.asked.count("POST /networks/create") == 20
        engine.close()


def test_an_engine_that_died_before_the_end_is_told_in_words() -> None:
    with serving({"POST /networks/create": (201, {"Id": "0123"})}) as server:
        engine = DockerEngine(server.url)
        made = engine.create_network(NetworkPlan("lab"), "run")
    with pytest.raises(EngineError, match=r"removing network lab failed: podman 4\.9 at tcp.*Connection refused"):
        made.close()
    engine.close()


def created(plan: NetworkPlan, about: dict[str, Any]) -> dict[str, Any]:
    """Give what an engine is asked for, for a network of this plan."""
    with serving({"POST /networks/create": (201, {"Id": "0123"})}, about=about) as server:
        engine = DockerEngine(server.url)
        made = engine.create_network(plan, "run")
        engine.close()
        asked: dict[str, Any] = json.loads(server.sent[-1])
    assert made.ipv6 is plan.ipv6
    assert str(made.subnet) == asked["IPAM"]["Config"][0]["Subnet"]
    return asked


LAB = IPv4Network("10.50.0.0/24")


@pytest.mark.parametrize("about", [DOCKER, PODMAN], ids=["docker", "podman"])
def test_what_the_engine_chooses_is_from_the_upper_half(about: dict[str, Any]) -> None:
    asked = created(NetworkPlan("lab", subnet=LAB), about)
    (pool,) = asked["IPAM"]["Config"]
    assert [pool[key] for key in ("Subnet", "IPRange", "Gateway")] == ["10.50.0.0/24", "10.50.0.128/25", "10.50.0.1"]
    assert (asked["Driver"], asked["Options"]) == ("bridge", {})
    assert not {"Internal", "EnableIPv6"} & asked.keys()
    free = created(NetworkPlan("lab", internal=True), about)
    (pool,) = free["IPAM"]["Config"]
    assert IPv4Network(pool["Subnet"]).subnet_of(subnets.POOL)
    assert free["Internal"]


def test_ipv6_has_a_pool_of_its_own_which_is_another_one_each_time() -> None:
    asked = [created(NetworkPlan("lab", subnet=LAB, ipv6=True), DOCKER) for _ in range(2)]
    assert all(each["EnableIPv6"] for each in asked)
    pools = [IPv6Network(each["IPAM"]["Config"][1]["Subnet"]) for each in asked]
    assert all(pool.subnet_of(IPv6Network("fd00::/8")) and pool.prefixlen == 64 for pool in pools)
    assert pools[0] != pools[1]


def test_a_wire_of_the_host_and_addresses_that_are_not_hidden_are_options_of_the_driver() -> None:
    lan = created(NetworkPlan("lab", driver="macvlan", subnet=LAB, parent="eth1"), DOCKER)
    assert (lan["Driver"], lan["Options"]) == ("macvlan", {"parent": "eth1"})
    routed = created(NetworkPlan("lab", masquerade=False, subnet=LAB), DOCKER)
    assert routed["Options"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}


def test_podman_is_not_asked_for_a_routed_network() -> None:
    with serving() as server:
        engine = DockerEngine(server.url)
        told = r"^creating network lab failed: Podman's networks hide .* Use Docker for a routed network, or create"
        with pytest.raises(EngineError, match=told):
            engine.create_network(NetworkPlan("lab", masquerade=False, subnet=LAB), "run")
        assert "POST /networks/create" not in server.asked
        engine.close()


def test_a_subnet_that_somebody_wants_is_not_replaced_by_another() -> None:
    with serving({"POST /networks/create": (403, {"message": "Pool overlaps with other one"})}) as server:
        engine = DockerEngine(server.url)
        with pytest.raises(EngineError, match=r"creating network lab failed: .* said: Pool overlaps with other one"):
            engine.create_network(NetworkPlan("lab", subnet=LAB), "run")
        assert server.asked.count("POST /networks/create") == 1
        engine.close()


BOTH = {"IPAM": {"Config": [{"Subnet": "fd50::/64"}, {"Subnet": "10.50.0.0/24", "Gateway": "10.50.0.1"}]}}


@pytest.mark.parametrize(
    ("described", "subnet", "ipv6"),
    [({**BOTH, "EnableIPv6": True}, LAB, True), ({"IPAM": {"Config": None}}, None, False), ({}, None, False)],
    ids=["both", "no pools", "nothing"],
)
def test_a_network_that_exists_is_looked_at_and_stays(
    described: dict[str, Any], subnet: IPv4Network | None, *, ipv6: bool
) -> None:
    with serving({"GET /networks/stack_db": (200, described)}) as server:
        engine = DockerEngine(server.url)
        found = engine.network("stack_db")
        found.close()
        engine.close()
    assert (found.name, found.subnet, found.ipv6) == ("stack_db", subnet, ipv6)
    assert not any(each.startswith("DELETE") for each in server.asked)


def test_a_network_that_should_exist_and_does_not_is_told_of() -> None:
    with serving({"GET /networks": (200, [{"Name": "stack_web"}, {"Name": "host"}])}) as server:
        engine = DockerEngine(server.url)
        told = r"^there is no network stack_db on podman .*; there are host, stack_web\. Create it first, or"
        with pytest.raises(EngineError, match=told):
            engine.network("stack_db")
        engine.close()


def test_the_subnets_of_all_other_networks_are_taken_by_runs_or_by_others() -> None:
    labels = ownership.labels("network", "1")
    listed = [
        {"Name": "mine", **BOTH},
        {"Name": "other", **BOTH, "Labels": None},
        {"Name": "virtainers-1", "Labels": labels, "IPAM": {"Config": [{"Subnet": "10.51.0.0/24"}]}},
        {"Name": "host", "IPAM": {"Config": []}},
    ]
    with serving({"GET /networks": (200, listed)}) as server:
        engine = DockerEngine(server.url)
        ours, others = subnets.in_use(engine, besides="mine")
        engine.close()
    assert (ours, others) == ([IPv4Network("10.51.0.0/24")], [IPv6Network("fd50::/64"), LAB])
