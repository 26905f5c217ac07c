import socket
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Network

import pytest

from pytest_virtainers.engine import detect, network
from pytest_virtainers.errors import EngineError
from tests.unit.fake_engine import Answer, serving


def test_subnets_keep_clear_of_what_is_taken() -> None:
    half = IPv4Network("10.213.0.0/17")
    chosen = network.free_subnets([half, IPv4Network("172.17.0.0/16")])
    assert len(chosen) == len(set(chosen)) == 20
    assert not any(each.overlaps(half) for each in chosen)
    assert all(each.subnet_of(network.POOL) and each.prefixlen == 24 for each in chosen)


def test_a_pool_that_is_all_taken_has_none() -> None:
    assert network.free_subnets([IPv4Network("10.0.0.0/8")]) == []


def test_the_guests_inner_network_is_not_in_the_pool() -> None:
    assert not network.POOL.overlaps(IPv4Network("192.168.100.0/24"))


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
        engine = detect.find(server.url)
        with pytest.raises(EngineError, match=rf"^creating network lab failed: podman 4\.9 at tcp\S+ said: {words}"):
            network.Network(engine, "lab", "run", network.Shape())
        engine.close()


def test_the_next_subnet_is_tried_when_one_is_taken() -> None:
    with serving({"POST /networks/create": (400, {"message": "Pool overlaps with other one"})}) as server:
        engine = detect.find(server.url)
        with pytest.raises(EngineError, match=r"creating network lab failed: 20 subnets .* were tried, and all are"):
            network.Network(engine, "lab", "run", network.Shape())
        assert server.asked.count("POST /networks/create") == 20
        engine.close()


def test_an_engine_that_died_before_the_end_is_told_in_words() -> None:
    with serving({"POST /networks/create": (201, {"Id": "0123"})}) as server:
        engine = detect.find(server.url)
        made = network.Network(engine, "lab", "run", network.Shape())
    with pytest.raises(EngineError, match=r"removing network lab failed: podman 4\.9 at tcp.*Connection refused"):
        made.close()
    engine.close()
