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
from pytest_virtainers.support.interruptible import TimedOut, patiently
from pytest_virtainers.vm.machine import SILENCE_SECONDS, Core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
_CHUNK_BYTES = 256 * 1024
_POLL_SECONDS = 0.5
_CANCEL = "cancel-tcpip-forward"
_CANCEL_SECONDS = 2.0  # with KVM


class Address(str):
    """An address as an URL: `http://127.0.0.1:40123`.

    Attributes:
        host: the first part of it.
        port: the second one.
    """

    host: str
    port: int

    __slots__ = ("host", "port")

    def __new__(cls, host: str, port: int) -> Address:
        """Make `http://HOST:PORT`."""
        made = super().__new__(cls, f"http://{host}:{port}")
        made.host, made.port = host, port
        return made


class Tunnels(Core):
    """The part of the handle that has to do with tunnels."""

    @contextlib.contextmanager
    def forward(self, port: int, *, host: str = "localhost") -> Iterator[Address]:
        """Give a local address that leads to a TCP port of the guest during the block, for any number of callers.

        Args:
            port: in the guest.
            host: as the guest knows it; another machine that only the guest reaches, for instance.

        Raises:
            VMGone, GuestPanic, SSHError: the machine or the connection is away.
        """
        __tracebackhide__ = True
        self._connected()
        with listening(f"{self.name}:{port}", functools.partial(self._serve, host, port)) as given:
            yield Address("127.0.0.1", given)

    def _serve(self, host: str, port: int, caller: socket.socket, over: threading.Event) -> None:
        with caller, contextlib.suppress(VirtainerError, *client.FAILURES):  # the caller sees its connection end
            origin = caller.getpeername()
            connection, channel = self._ask(
                lambda connection: connection.transport.open_channel("direct-tcpip", (host, port), origin),
                unwanted=lambda _connection, late: late.close(),
            )
            join(caller, channel, over, meanwhile=self._silence_of(connection))

    def _ask(
        self,
        question: Callable[[client.Connection], T],
        *,
        unwanted: Callable[[client.Connection, T], object],
        timeout: float | None = None,
    ) -> tuple[client.Connection, T]:
        """Ask the guest's sshd, and ask again through the engine if the container has lost its network.

        Raises:
            TimedOut: there was no answer within `timeout` seconds.
        """
        __tracebackhide__ = True
        while True:
            connection = self._connected()
            silence = self._silence_of(connection)

            def check(silence: Callable[[], float] = silence) -> None:
                self._check_alive()
                silence()

            try:
                answer = patiently(
                    functools.partial(question, connection),
                    check=check,
                    deadline=None if timeout is None else time.monotonic() + timeout,
                    unwanted=functools.partial(unwanted, connection),
                )
            except client.FAILURES:
                if not connection.astray:
                    raise
            else:
                return connection, answer

    @contextlib.contextmanager
    def reverse(self, port: int, *, guest_port: int | None = None) -> Iterator[int]:
        """Let the guest reach a TCP port of this machine at a port of its own (on localhost) during the block.

        Args:
            port: on this machine's 127.0.0.1.
            guest_port: in the guest; by default the same number, 0 for any that is free there.

        Returns:
            The port in the guest.

        Raises:
            SSHError: the guest's sshd refuses, for instance because the port is taken.
            GuestStalled: it does not answer.
        """
        __tracebackhide__ = True
        wanted = port if guest_port is None else guest_port
        over = threading.Event()
        try:
            connection, given = self._ask(
                lambda connection: connection.listen(wanted, self._arrived),
                unwanted=lambda connection, late: connection.request(_CANCEL, ("127.0.0.1", late)),
                timeout=self.scaled(SILENCE_SECONDS),
            )
        except TimedOut:
            raise self._hangs() from None
        except paramiko.SSHException as error:
            raise SSHError(f"{self.name}: its sshd does not listen on port {wanted} for us ({error})") from error
        self._reversed[given] = port, over
        try:
            yield given
        finally:
            del self._reversed[given]
            over.set()
            with contextlib.suppress(TimedOut, *client.FAILURES):  # the guest may hang
                # Not paramiko's `cancel_port_forward`: that would be the end of all others, too.
                patiently(
                    lambda: connection.request(_CANCEL, ("127.0.0.1", given)),
                    check=lambda: None,
                    deadline=time.monotonic() + self.scaled(_CANCEL_SECONDS),
                )

    def _arrived(self, channel: paramiko.Channel, _origin: tuple[str, int], server: tuple[str, int]) -> None:
        """Lead a caller on from the guest; paramiko has one such function for all ports of a connection."""
        port, over = self._reversed.get(server[1], (0, threading.Event()))
        threading.Thread(target=_lead_on, args=(channel, port, over), daemon=True).start()


@contextlib.contextmanager
def listening(name: str, serve: Callable[[socket.socket, threading.Event], object], port: int = 0) -> Iterator[int]:
    """Listen on 127.0.0.1 during the block; gives the port, which is any free one for 0.

    Args:
        name: of the thread that waits for callers.
        serve: has a thread of its own for each caller; the event is set when the block is over.
        port: to listen on.
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
    """What `join` needs of one end, as paramiko's channels have it."""

    @property
    def closed(self) -> bool:
        """Whether it is over."""

    def recv(self, size: int) -> bytes:
        """Read at most `size` bytes; empty at its end."""

    def sendall(self, data: bytes) -> None:
        """Write all of `data`."""

    def shutdown_write(self) -> None:
        """Write no more."""

    def close(self) -> None:
        """End it."""


def join(
    sock: socket.socket,
    channel: Channel,
    over: threading.Event,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Copy both ways until both ends have said all, or it is over; call `meanwhile` again and again."""

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
            meanwhile()
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
