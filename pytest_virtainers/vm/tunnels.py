"""TCP between the test process and the guest, through the SSH connection."""

from __future__ import annotations

import contextlib
import functools
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

import paramiko

from pytest_virtainers.errors import SSHError, VirtainerError
from pytest_virtainers.ssh import client
from pytest_virtainers.support.forks import close_in_child
from pytest_virtainers.support.interruptible import TimedOut, run_interruptible
from pytest_virtainers.vm.health import SILENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.vm.machine import Machine

T = TypeVar("T")
_CHUNK_BYTES = 256 * 1024
_POLL_SECONDS = 0.5
_CANCEL = "cancel-tcpip-forward"
_CANCEL_SECONDS = 2.0  # with KVM


class Address(str):
    """An address of this machine as a URL: `http://127.0.0.1:40123`.

    Attributes:
        host: its host, `127.0.0.1`.
        port: its TCP port.
    """

    host: str
    port: int

    __slots__ = ("host", "port")

    def __new__(cls, host: str, port: int) -> Address:
        """Return `http://HOST:PORT`."""
        made = super().__new__(cls, f"http://{host}:{port}")
        made.host, made.port = host, port
        return made


class Tunnels:
    """Forwards TCP ports to and from the guest of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._ssh = machine, machine.ssh

    @contextlib.contextmanager
    def forward(self, port: int, *, host: str) -> Iterator[Address]:
        """Open a local address that leads to a TCP port of the guest, as `VM.forward` documents."""
        __tracebackhide__ = True
        self._ssh.connected()
        with listening(f"{self._machine.name}:{port}", functools.partial(self._serve, host, port)) as given:
            yield Address("127.0.0.1", given)

    def _serve(self, host: str, port: int, caller: socket.socket, over: threading.Event) -> None:
        with caller, contextlib.suppress(VirtainerError, *client.FAILURES):  # the caller sees its connection end
            origin = caller.getpeername()
            connection, channel = self._ask(
                lambda connection: connection.transport.open_channel("direct-tcpip", (host, port), origin),
                unwanted=lambda _connection, late: late.close(),
            )
            join(caller, channel, over, on_poll=self._ssh.silence_of(connection))

    def _ask(
        self,
        question: Callable[[client.Connection], T],
        *,
        unwanted: Callable[[client.Connection, T], object],
        timeout: float | None = None,
    ) -> tuple[client.Connection, T]:
        """Ask the guest's sshd, and ask again through the engine if the container lost its network.

        Raises:
            TimedOut: there was no answer within `timeout` seconds.
        """
        __tracebackhide__ = True
        while True:
            connection = self._ssh.connected()
            silence = self._ssh.silence_of(connection)

            def check(silence: Callable[[], float] = silence) -> None:
                self._machine.health.check_alive()
                silence()

            try:
                answer = run_interruptible(
                    functools.partial(question, connection),
                    check=check,
                    deadline=None if timeout is None else time.monotonic() + timeout,
                    unwanted=functools.partial(unwanted, connection),
                )
            except client.FAILURES:
                if not connection.stale:
                    raise
            else:
                return connection, answer

    @contextlib.contextmanager
    def reverse(self, port: int, *, guest_port: int | None) -> Iterator[int]:
        """Open a port of the guest that leads to one of this machine, as `VM.reverse` documents."""
        __tracebackhide__ = True
        wanted = port if guest_port is None else guest_port
        over = threading.Event()
        try:
            connection, given = self._ask(
                lambda connection: connection.listen(wanted, self._arrived),
                unwanted=lambda connection, late: connection.request(_CANCEL, ("127.0.0.1", late)),
                timeout=self._machine.scaled(SILENCE_SECONDS),
            )
        except TimedOut:
            raise self._machine.health.stalled() from None
        except paramiko.SSHException as error:
            raise SSHError(f"{self._machine.name}: its sshd refuses to listen on port {wanted} ({error})") from error
        self._ssh.reversed_ports[given] = port, over
        try:
            yield given
        finally:
            del self._ssh.reversed_ports[given]
            over.set()
            with contextlib.suppress(TimedOut, *client.FAILURES):  # the guest may hang
                # Not paramiko's `cancel_port_forward`, which would end all others, too.
                run_interruptible(
                    lambda: connection.request(_CANCEL, ("127.0.0.1", given)),
                    check=lambda: None,
                    deadline=time.monotonic() + self._machine.scaled(_CANCEL_SECONDS),
                )

    def _arrived(self, channel: paramiko.Channel, _origin: tuple[str, int], server: tuple[str, int]) -> None:
        """Serve a caller in the guest; paramiko calls this for all ports of a connection."""
        port, over = self._ssh.reversed_ports.get(server[1], (0, threading.Event()))
        threading.Thread(target=_lead_on, args=(channel, port, over), daemon=True).start()


@contextlib.contextmanager
def listening(name: str, serve: Callable[[socket.socket, threading.Event], object], port: int = 0) -> Iterator[int]:
    """Listen on 127.0.0.1 for the duration of the block, which gets the port.

    Args:
        name: of the thread that accepts callers.
        serve: called in a new thread for each caller, with an event that is set at the end of the block.
        port: the port; 0: any free one.
    """
    with socket.create_server(("127.0.0.1", port), backlog=64) as server, contextlib.ExitStack() as callers:
        close_in_child(server)
        server.settimeout(_POLL_SECONDS)
        over = threading.Event()

        def accept() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError, OSError):
                    caller = close_in_child(server.accept()[0])
                    callers.callback(_hang_up, caller)
                    threading.Thread(target=serve, args=(caller, over), daemon=True).start()

        accepting = threading.Thread(target=accept, name=name, daemon=True)
        accepting.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            accepting.join()


def _hang_up(caller: socket.socket) -> None:
    with contextlib.suppress(OSError):
        caller.shutdown(socket.SHUT_RDWR)


def _lead_on(channel: paramiko.Channel, port: int, over: threading.Event) -> None:
    with contextlib.suppress(*client.FAILURES), socket.create_connection(("127.0.0.1", port)) as service:
        close_in_child(service)
        join(service, channel, over)
    channel.close()


class Channel(Protocol):
    """One end for `join`, with the interface of paramiko's channels."""

    @property
    def closed(self) -> bool:
        """Whether it is closed."""

    def recv(self, size: int) -> bytes:
        """Read at most `size` bytes; none at its end."""

    def sendall(self, data: bytes) -> None:
        """Write all of `data`."""

    def shutdown_write(self) -> None:
        """End the output."""

    def close(self) -> None:
        """Close it."""


def join(
    sock: socket.socket,
    channel: Channel,
    over: threading.Event,
    on_poll: Callable[[], object] = lambda: None,
) -> None:
    """Copy in both directions until both ends have sent all, or `over` is set; call `on_poll` twice a second."""

    def from_channel() -> None:
        with contextlib.suppress(*client.FAILURES):
            while data := channel.recv(_CHUNK_BYTES):
                sock.sendall(data)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=from_channel, daemon=True)
    back.start()
    with contextlib.suppress(*client.FAILURES), selectors.DefaultSelector() as arriving:
        arriving.register(sock, selectors.EVENT_READ)
        while not (channel.closed or over.is_set()):
            on_poll()
            if arriving.select(_POLL_SECONDS):
                data = sock.recv(_CHUNK_BYTES)
                if not data:
                    break
                channel.sendall(data)
    with contextlib.suppress(*client.FAILURES):
        channel.shutdown_write()
    while back.is_alive() and not over.is_set():
        back.join(_POLL_SECONDS)
    channel.close()
