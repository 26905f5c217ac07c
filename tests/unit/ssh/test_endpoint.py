"""Ways to a guest's SSH port, with real TCP ports instead of containers."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.engine.facts import Addresses
from pytest_virtainers.errors import EngineError
from pytest_virtainers.ssh import resumable
from pytest_virtainers.ssh.endpoint import RELAY, Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS = "127.1.2.3"
"""This host is on the network 127.0.0.0/8, but not on 127.1.2.0/24, where it sends from 127.0.0.1."""


class FakeContainer:
    """A container with an address, and a stream for each command, which answers unless it is `deaf`."""

    id = "c0ffee"

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self.is_now = addresses
        self.looks = 0
        self.commands: list[list[str]] = []
        self.deaf = False
        self.closed = 0

    def addresses(self, *, refresh: bool = False) -> Addresses:
        if refresh:
            self.looks += 1
            self._addresses = self.is_now
        return self._addresses

    def stream(self, command: list[str]) -> Any:
        self.commands.append(command)
        return self

    def settimeout(self, _seconds: float) -> None:
        pass

    def wait_for_output(self) -> None:
        if self.deaf:
            raise ConnectionError("2026/11/28 12:00:00 socat[9] E connect(5, AF=2 192.168.100.2:22, 16): refused")

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen on a port to which connections to all guests are redirected."""
    with socket.create_server((ADDRESS, 0)) as server:
        there = server.getsockname()[1]
        real = socket.create_connection
        monkeypatch.setattr(socket, "create_connection", lambda to, timeout: real((to[0], there), timeout))
        yield server


def endpoint(container: FakeContainer) -> Endpoint:
    engine: Any = SimpleNamespace(url="unix:///engine.sock")
    made: Any = container
    return Endpoint(engine, made)


def test_the_address_is_used_on_the_same_network(port: socket.socket) -> None:
    container = FakeContainer(Addresses("", ADDRESS, prefix=8))
    with endpoint(container).dial(5), endpoint(container).dial_serial():
        assert container.commands == []
    port.close()
    known = endpoint(container)
    for _ in range(8):  # the guest is booting
        with pytest.raises(ConnectionRefusedError):
            known.dial(5)
    assert container.commands == []


@pytest.mark.parametrize(
    "addresses", [Addresses("", ADDRESS, prefix=24), Addresses("", "")], ids=["elsewhere", "no address"]
)
def test_the_relay_is_used_on_other_networks(port: socket.socket, addresses: Addresses) -> None:
    # As a proxy or a firewall does that answers instead of the guest.
    container = FakeContainer(addresses)
    far = endpoint(container)
    far.dial(5)
    far.dial_serial()
    assert container.commands == [RELAY, resumable.COMMAND]
    assert "pytest_virtainers.engine.relay" in far.ssh_options()["ProxyCommand"]
    port.settimeout(0.1)
    with pytest.raises(TimeoutError):
        port.accept()


def test_the_relay_is_used_if_the_network_refuses_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    container = FakeContainer(Addresses("", ADDRESS, prefix=8))
    tried = endpoint(container)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            tried.dial(5)
    assert tried.dial(5) is tried.dial(5) is container, "the engine is not asked again"
    assert container.commands == [RELAY, RELAY]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every look-up ask the engine."""
    monkeypatch.setattr("pytest_virtainers.ssh.endpoint._LOOK_SECONDS", -1.0)


@pytest.mark.usefixtures("at_once")
def test_the_relay_is_used_after_a_disconnect(port: socket.socket) -> None:
    container = FakeContainer(Addresses("", ADDRESS, prefix=8))
    lost = endpoint(container)
    lost.dial(5).close()
    assert lost.leads_to(ADDRESS)
    container.is_now = Addresses("", "")
    port.close()  # or another container got the address
    lost.dial(5)
    lost.dial_serial()
    assert container.commands == [RELAY, resumable.COMMAND]
    assert not lost.leads_to(ADDRESS)
    assert lost.address == ""


@pytest.mark.usefixtures("at_once")
def test_the_address_is_found_after_a_reconnect(port: socket.socket) -> None:
    container = FakeContainer(Addresses("", ADDRESS, prefix=8))
    back = endpoint(container)
    container.is_now = Addresses("", "")
    assert not back.leads_to(ADDRESS)
    container.is_now = Addresses("", "127.9.9.9", prefix=8)
    assert back.address == "127.9.9.9"
    assert not back.leads_to(ADDRESS)
    assert port.fileno() > 0
    assert back.ssh_options() == {}


def test_the_engine_is_asked_at_most_once_a_second() -> None:
    container = FakeContainer(Addresses("", ADDRESS, prefix=8))
    known = endpoint(container)
    assert all(known.leads_to(ADDRESS) for _ in range(10))
    assert container.looks == 0


@pytest.mark.usefixtures("at_once")
def test_an_engine_error_keeps_the_known_address(monkeypatch: pytest.MonkeyPatch) -> None:
    container = FakeContainer(Addresses("", ADDRESS, prefix=8))
    known = endpoint(container)

    def fail(**_: object) -> Addresses:
        raise EngineError("it is restarted")

    monkeypatch.setattr(container, "addresses", fail)
    assert known.leads_to(ADDRESS)


def test_the_error_of_the_relay_is_reported() -> None:
    container = FakeContainer(Addresses("", ""))
    container.deaf = True
    with pytest.raises(ConnectionError, match=r"^through its container: connect\(.*\): refused$"):
        endpoint(container).dial(5)
    assert container.closed == 1
