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
def test_a_failed_creation_is_explained(answer: Answer, words: str) -> None:
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


def test_closing_reports_an_engine_that_has_stopped() -> None:
    with serving({"POST /networks/create": (201, {"Id": "0123"})}) as server:
        engine = DockerEngine(server.url)
        made = engine.create_network(NetworkPlan("lab"), "run")
    with pytest.raises(EngineError, match=r"removing network lab failed: podman 4\.9 at tcp.*Connection refused"):
        made.close()
    engine.close()


def created(plan: NetworkPlan, about: dict[str, Any]) -> dict[str, Any]:
    """Return the request to an engine for a network of this plan."""
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
def test_the_engine_assigns_addresses_of_the_upper_half(about: dict[str, Any]) -> None:
    asked = created(NetworkPlan("lab", subnet=LAB), about)
    (pool,) = asked["IPAM"]["Config"]
    assert [pool[key] for key in ("Subnet", "IPRange", "Gateway")] == ["10.50.0.0/24", "10.50.0.128/25", "10.50.0.1"]
    assert (asked["Driver"], asked["Options"]) == ("bridge", {})
    assert not {"Internal", "EnableIPv6"} & asked.keys()
    free = created(NetworkPlan("lab", internal=True), about)
    (pool,) = free["IPAM"]["Config"]
    assert IPv4Network(pool["Subnet"]).subnet_of(subnets.POOL)
    assert free["Internal"]


def test_ipv6_networks_have_random_local_prefixes() -> None:
    asked = [created(NetworkPlan("lab", subnet=LAB, ipv6=True), DOCKER) for _ in range(2)]
    assert all(each["EnableIPv6"] for each in asked)
    pools = [IPv6Network(each["IPAM"]["Config"][1]["Subnet"]) for each in asked]
    assert all(pool.subnet_of(IPv6Network("fd00::/8")) and pool.prefixlen == 64 for pool in pools)
    assert pools[0] != pools[1]


def test_parent_and_masquerade_become_driver_options() -> None:
    lan = created(NetworkPlan("lab", driver="macvlan", subnet=LAB, parent="eth1"), DOCKER)
    assert (lan["Driver"], lan["Options"]) == ("macvlan", {"parent": "eth1"})
    routed = created(NetworkPlan("lab", masquerade=False, subnet=LAB), DOCKER)
    assert routed["Options"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}


def test_podman_refuses_routed_networks() -> None:
    with serving() as server:
        engine = DockerEngine(server.url)
        message = (
            r"^creating network lab failed: Podman's networks hide .* Use Docker for a routed network, or create"
        )
        with pytest.raises(EngineError, match=message):
            engine.create_network(NetworkPlan("lab", masquerade=False, subnet=LAB), "run")
        assert "POST /networks/create" not in server.asked
        engine.close()


def test_a_requested_subnet_is_not_replaced() -> None:
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
def test_an_existing_network_is_inspected_and_stays(
    described: dict[str, Any], subnet: IPv4Network | None, *, ipv6: bool
) -> None:
    with serving({"GET /networks/stack_db": (200, described)}) as server:
        engine = DockerEngine(server.url)
        found = engine.network("stack_db")
        found.close()
        engine.close()
    assert (found.name, found.subnet, found.ipv6) == ("stack_db", subnet, ipv6)
    assert not any(each.startswith("DELETE") for each in server.asked)


def test_a_missing_network_is_reported_with_those_that_exist() -> None:
    with serving({"GET /networks": (200, [{"Name": "stack_web"}, {"Name": "host"}])}) as server:
        engine = DockerEngine(server.url)
        message = r"^there is no network stack_db on podman .*; there are host, stack_web\. Create it first, or"
        with pytest.raises(EngineError, match=message):
            engine.network("stack_db")
        engine.close()


def test_subnets_in_use_are_those_of_runs_and_of_others() -> None:
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
