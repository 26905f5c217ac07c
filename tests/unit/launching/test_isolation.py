"""What is closed to VMs, also addresses that the host gets later."""

import json
from collections.abc import Mapping
from ipaddress import IPv4Network
from types import SimpleNamespace
from typing import Any

import pytest
from typing_extensions import override

from pytest_virtainers.config import reach
from pytest_virtainers.engine import host, subnets
from pytest_virtainers.engine.plan import Plan
from pytest_virtainers.errors import EngineError
from pytest_virtainers.launching.isolation import Isolation
from tests.unit.memory_engine import MemoryContainer


class Container(MemoryContainer):
    """Records what is closed to it; `result` is that of the command."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(Plan("virtainers-web", "vm", "an-image", environment=environment))
        self.closed_lists: list[Any] = []
        self.result: tuple[int, bytes] | EngineError = (0, b"")

    @override
    def reply(self, command: list[str]) -> tuple[int, bytes]:
        assert self.patience
        assert command[0] == "closed"
        self.closed_lists.append(json.loads(command[1]))
        if isinstance(self.result, EngineError):
            raise self.result
        return self.result


class Watch:
    """The host's addresses, which a test changes."""

    def __init__(self, changed: Any) -> None:
        self.changed, self.closed = changed, False
        WATCHES.append(self)

    def close(self) -> None:
        self.closed = True


WATCHES: list[Watch] = []
ENGINE: Any = SimpleNamespace(is_local=True)


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    listed = ["192.0.2.2", "172.17.0.1"]
    WATCHES.clear()
    monkeypatch.setattr(host, "addresses", lambda: list(listed))
    monkeypatch.setattr(host, "AddressWatch", Watch)
    monkeypatch.setattr(subnets, "in_use", lambda *_, **__: ([], [IPv4Network("203.0.113.128/25")]))
    return listed


class Network:
    engine_name, subnet = "run-default", IPv4Network("10.213.7.0/24")

    def __init__(self, mode: str, *, has_host: bool) -> None:
        self.spec, self.has_host = SimpleNamespace(mode=mode), has_host


def network(mode: str = "nat", *, has_host: bool = True) -> Any:
    return Network(mode, has_host=has_host)


def started(isolation: Isolation, on: Any) -> Any:
    container: Any = Container(isolation.environment(on))
    isolation.guard(container, on)
    return container


def lists(environment: Any) -> tuple[list[str], list[str]]:
    return environment["CLOSED_NETWORKS"].split(","), environment["CLOSED_HOSTS"].split(",")


def test_with_internet_private_networks_and_the_host_are_closed() -> None:
    for mode in ("nat", "routed", "existing"):
        networks, hosts = lists(Isolation(ENGINE).environment(network(mode)))
        assert {"10.0.0.0/8", "169.254.0.0/16", "203.0.113.128/25", "fc00::/7"} <= set(networks), mode
        assert hosts == ["10.213.7.1", "172.17.0.1", "192.0.2.2"], mode


def test_without_internet_everything_is_closed_even_what_reach_opens() -> None:
    opened = Isolation(ENGINE, reach.networks("private"))
    assert lists(opened.environment(network("isolated")))[0] == ["0.0.0.0/0", "::/0"]


def test_on_the_wire_of_the_host_only_metadata_services_are_closed() -> None:
    """The first address of such a network is its router's, not the host's."""
    environment = Isolation(ENGINE).environment(network("macvlan", has_host=False))
    assert "169.254.0.0/16" in environment["CLOSED_NETWORKS"]
    assert "10.0.0.0/8" not in environment["CLOSED_NETWORKS"]
    assert (environment["CLOSED_HOSTS"], environment["CLOSED_GATEWAY"]) == ("", "off")


def test_an_address_that_the_host_gets_is_closed_to_vms_that_run(addresses: list[str]) -> None:
    isolation, on = Isolation(ENGINE, reach.networks("10.88.0.0/16")), network()
    container = started(isolation, on)
    assert container.closed_lists == [], "it has all addresses already"
    for address in ("10.88.9.1", "198.51.100.1"):
        addresses.append(address)
        WATCHES[0].changed()
        assert address in container.closed_lists[-1]["hosts"]
    assert "10.213.7.1" in container.closed_lists[-1]["hosts"]
    assert "203.0.113.128/25" in container.closed_lists[-1]["networks"]
    WATCHES[0].changed()
    assert len(container.closed_lists) == 2, "it has them already"


def test_an_address_in_a_network_that_is_closed_is_closed(addresses: list[str]) -> None:
    isolation, on = Isolation(ENGINE), network()
    container = started(isolation, on)
    addresses += ["10.88.9.1", "10.213.9.1", "203.0.113.129", "fd00::9"]
    WATCHES[0].changed()
    assert container.closed_lists == []


def test_an_address_that_the_host_gets_while_a_container_starts_is_closed(addresses: list[str]) -> None:
    isolation, on = Isolation(ENGINE), network()
    container: Any = Container(isolation.environment(on))
    addresses.append("198.51.100.1")
    isolation.guard(container, on)
    assert "198.51.100.1" in container.closed_lists[-1]["hosts"]


def test_a_container_that_has_ended_gets_no_command(addresses: list[str]) -> None:
    isolation, on = Isolation(ENGINE), network()
    container = started(isolation, on)
    container.ended = True
    addresses.append("198.51.100.1")
    WATCHES[0].changed()
    assert container.closed_lists == []


@pytest.mark.parametrize("answer", [(1, b"closed: nft failed: no\n"), EngineError("closed: nft failed: no")])
def test_an_address_that_cannot_be_closed_is_reported_and_retried(
    addresses: list[str], answer: tuple[int, bytes] | EngineError
) -> None:
    notes: list[str] = []
    isolation, on = Isolation(ENGINE, note=notes.append), network()
    container = started(isolation, on)
    container.result = answer
    addresses.append("198.51.100.1")
    WATCHES[0].changed()
    assert notes == [
        "virtainers-web: addresses that the host got since its start could not be closed to it, so it may reach "
        "services there: closed: nft failed: no"
    ]
    container.result = (0, b"")
    WATCHES[0].changed()
    assert len(container.closed_lists) == 2


def test_an_engine_elsewhere_and_a_wire_of_the_host_are_not_watched() -> None:
    far: Any = SimpleNamespace(is_local=False)
    for isolation, on in ((Isolation(far), network()), (Isolation(ENGINE), network(has_host=False))):
        started(isolation, on)
        isolation.close()
    assert WATCHES == []


def test_watching_ends_with_close(addresses: list[str]) -> None:
    isolation, on = Isolation(ENGINE), network()
    container = started(isolation, on)
    isolation.close()
    addresses.append("198.51.100.1")
    WATCHES[0].changed()
    assert (WATCHES[0].closed, container.closed_lists) == (True, [])
