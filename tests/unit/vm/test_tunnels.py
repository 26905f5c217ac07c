"""Tunnels through an SSH connection that is played by sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers import SSHError, VMGone
from pytest_virtainers.errors import GuestStalled
from pytest_virtainers.ssh.client import Connection
from pytest_virtainers.vm import tunnels
from pytest_virtainers.vm.console import Console
from pytest_virtainers.vm.tunnels import Tunnels
from tests.unit.fake_output import Said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "_POLL_SECONDS", 0.02)


class Channel:
    """One end of a channel: its other end is a socket in the guest."""

    def __init__(self) -> None:
        self._socket, self.guest = socket.socketpair()
        self.guest.settimeout(5)
        self.over = threading.Event()
        self.sendall = self._socket.sendall
        self.recv = self._socket.recv

    @property
    def closed(self) -> bool:
        return self.over.is_set()

    def shutdown_write(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.over.set()


class Transport:
    """The guest's sshd: opens channels, and listens on ports but 22."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self.handler: Callable[[Any, Any, Any], None]
        self.cancelled: list[Any] = []
        self.gave_back = threading.Event()
        self.hangs = threading.Event()
        self.hangs.set()

    def open_channel(self, kind: str, target: tuple[str, int], _origin: tuple[str, int]) -> Channel:
        assert (kind, target) == ("direct-tcpip", ("localhost", 80))
        self.channels.append(Channel())
        return self.channels[-1]

    def request_port_forward(self, _address: str, port: int, handler: Callable[[Any, Any, Any], None]) -> int:
        self.hangs.wait(5)
        if port == 22:
            from paramiko import SSHException

            raise SSHException("TCP forwarding request denied")
        self.handler = handler
        return port or 40001

    def global_request(self, kind: str, data: Any, wait: bool) -> None:
        assert (kind, wait) == ("cancel-tcpip-forward", True)
        self.hangs.wait(5)
        self.cancelled.append(data)
        self.gave_back.set()

    def call(self, port: int) -> socket.socket:
        """Connect to a port in the guest."""
        channel = Channel()
        self.channels.append(channel)
        self.handler(channel, ("127.0.0.1", 5), ("127.0.0.1", port))
        return channel.guest


class Machine(Tunnels):
    def __init__(self) -> None:
        self.name = "web"
        self.transport = Transport()
        self.connection = Connection(self.transport)  # type: ignore[arg-type]
        self.console = Console(SimpleNamespace(stdout=Said(b"login:\n")))
        self._reversed = {}
        self.is_gone = False

    def _connected(self) -> Any:
        return self.connection

    def _check_alive(self, _grace_seconds: float = 0.0) -> None:
        if self.is_gone:
            raise VMGone("web has ended")

    def scaled(self, seconds: float) -> float:
        return seconds


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    for channel in machine.transport.channels:
        assert channel.over.wait(5), "a channel is left"
        channel.guest.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def channel_of(machine: Machine, caller: socket.socket) -> Channel:
    """Give the channel to which a caller is led, as it says something."""
    caller.sendall(b"hello")
    while not machine.transport.channels:
        pass
    channel = machine.transport.channels[-1]
    assert channel.guest.recv(100) == b"hello"
    return channel


def test_a_caller_and_the_guest_talk_until_both_have_said_all(machine: Machine) -> None:
    with machine.forward(80) as url:
        assert (url, url.host) == (f"http://127.0.0.1:{url.port}", "127.0.0.1")
        with connect(url.port) as caller:
            channel = channel_of(machine, caller)
            caller.shutdown(socket.SHUT_WR)
            assert channel.guest.recv(100) == b""
            channel.guest.sendall(b"answer")
            channel.guest.close()
            assert [caller.recv(100), caller.recv(100)] == [b"answer", b""]


def test_open_connections_end_with_the_block(machine: Machine) -> None:
    with contextlib.ExitStack() as stack:
        with machine.forward(80) as url:
            caller = stack.enter_context(connect(url.port))
            channel = channel_of(machine, caller)
        assert caller.recv(100) == b""
        assert channel.over.wait(5)
        with pytest.raises(OSError, match="refused"):
            connect(url.port)


@contextlib.contextmanager
def service(answer: bytes) -> Iterator[int]:
    """Answer one caller."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as caller:
                caller.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_each_port_of_the_guest_leads_to_its_own_service(machine: Machine) -> None:
    with service(b"database") as database, service(b"mail") as mail, machine.reverse(database, guest_port=5432):
        with machine.reverse(mail, guest_port=0) as port:
            assert port == 40001
            with machine.transport.call(port) as caller:
                assert caller.recv(100) == b"mail"
        assert machine.transport.cancelled == [("127.0.0.1", 40001)]
        with machine.transport.call(5432) as caller:
            assert caller.recv(100) == b"database", "the end of the other was not its end"
        with machine.transport.call(40001) as caller:
            assert caller.recv(100) == b"", "a port that leads nowhere any more"


def test_a_guest_that_hangs_does_not_hold_the_end_of_a_block(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels, "_CANCEL_SECONDS", 0.01)
    with machine.reverse(9):
        machine.transport.hangs.clear()
    assert machine.transport.cancelled == []
    machine.transport.hangs.set()


def test_a_port_that_is_taken_in_the_guest_is_told(machine: Machine) -> None:
    with pytest.raises(
        SSHError, match=r"web: its sshd does not listen on port 22 for us \(TCP forwarding .*denied\)"
    ):
        machine.reverse(9, guest_port=22).__enter__()


def test_a_guest_that_hangs_does_not_hold_the_start_of_a_block(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels, "SILENCE_SECONDS", 0.01)
    machine.transport.hangs.clear()
    with pytest.raises(GuestStalled, match=r"web: the guest hangs: it has not answered for .*\n  \| login:"):
        machine.reverse(9).__enter__()
    machine.is_gone = True
    with pytest.raises(VMGone):
        machine.reverse(9).__enter__()
    machine.transport.hangs.set()


def test_a_port_that_is_given_too_late_is_given_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "SILENCE_SECONDS", 0.01)
    machine.transport.hangs.clear()
    with pytest.raises(GuestStalled):
        machine.reverse(9, guest_port=0).__enter__()
    machine.transport.hangs.set()
    assert machine.transport.gave_back.wait(5)
    assert machine.transport.cancelled == [("127.0.0.1", 40001)]
