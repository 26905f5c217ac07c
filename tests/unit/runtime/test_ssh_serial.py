"""The connection between the guest's port and callers."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from virtainer import ssh_serial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self


class Guest:
    """Both ends of a guest's port, `SSHSerial` at one of them, and callers."""

    def __init__(self, folder: Path, *, kept: bool) -> None:
        self._stack = ExitStack()
        self.end, self._port = socket.socketpair()
        self._path = str(folder / "line.sock")
        server = self._served(socket.socket(socket.AF_UNIX))
        server.bind(self._path)
        server.listen()
        self.line = ssh_serial.SSHSerial(self._port, server, kept=kept)
        self.end.settimeout(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end.close()
        self._stack.close()
        self._port.close()

    def _served(self, server: socket.socket) -> socket.socket:
        self._stack.callback(server.close)
        self._stack.callback(server.shutdown, socket.SHUT_RDWR)  # the thread that accepts callers notices
        return server

    def listen(self, *hosts: str) -> socket.socket:
        """Listen on TCP, too, for these addresses only."""
        server = self._served(socket.create_server(("127.0.0.1", 0)))
        self.line.listen(server, hosts)
        return server

    def call(self, server: socket.socket | None = None) -> socket.socket:
        caller = self._stack.enter_context(socket.socket(server.family if server else socket.AF_UNIX))
        caller.settimeout(60)
        caller.connect(server.getsockname() if server else self._path)
        return caller

    def prints(self, data: bytes) -> None:
        """Send output of the guest, and wait until it was read."""
        self.end.sendall(data)
        while select.select([self._port], [], [], 0)[0]:
            pass


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with Guest(tmp_path, kept=True) as guest:
        yield guest


def exchange(caller: socket.socket, guest: Guest) -> None:
    """Prove that this caller is connected to the guest, in both directions."""
    caller.sendall(b"question")
    assert guest.end.recv(100) == b"question"
    guest.end.sendall(b"answer")
    assert caller.recv(100) == b"answer"


def test_bytes_go_both_ways(guest: Guest) -> None:
    caller = guest.call()
    exchange(caller, guest)
    exchange(caller, guest)


def test_output_of_the_guest_waits_for_a_caller(guest: Guest) -> None:
    guest.prints(b"SSH-2.0")
    assert guest.call().recv(100) == b"SSH-2.0"


def test_a_second_caller_waits_until_the_first_has_hung_up(guest: Guest) -> None:
    first = guest.call()
    exchange(first, guest)
    threads = set(threading.enumerate())
    second = guest.call()
    second.sendall(b"me, too")
    while not set(threading.enumerate()) - threads:  # it is not accepted yet
        pass
    for _ in range(100):
        exchange(first, guest)
    first.close()
    assert guest.end.recv(100) == b"me, too"
    exchange(second, guest)


def test_a_kept_session_hides_a_hang_up_from_the_guest(guest: Guest) -> None:
    for _ in range(2):
        with guest.call() as caller:
            exchange(caller, guest)


def test_a_hang_up_ends_a_session_that_is_not_kept(tmp_path: Path) -> None:
    with Guest(tmp_path, kept=False) as guest:
        with guest.call() as caller:
            exchange(caller, guest)
        assert guest.end.recv(100) == b""


def test_a_hang_up_after_a_snapshot_is_hidden_from_the_guest(tmp_path: Path) -> None:
    with Guest(tmp_path, kept=False) as guest:
        guest.line.after_snapshot("save", "s1")
        for _ in range(2):
            with guest.call() as caller:
                exchange(caller, guest)


def test_unread_output_from_before_a_restore_is_dropped(guest: Guest) -> None:
    with guest.call() as caller:
        exchange(caller, guest)
        caller.shutdown(socket.SHUT_WR)
        assert caller.recv(100) == b"", "the hang-up was noticed"
    guest.prints(b"before")
    guest.line.after_snapshot("load", "s1")
    guest.prints(b"just before")
    time.sleep(0.5)  # it is read and dropped in this time
    exchange(guest.call(), guest)


def test_output_after_a_hang_up_waits_for_the_next_caller(guest: Guest) -> None:
    caller = guest.call()
    exchange(caller, guest)
    caller.shutdown(socket.SHUT_WR)
    assert caller.recv(100) == b"", "the hang-up was noticed"
    guest.prints(b"who is there?")
    assert guest.call().recv(100) == b"who is there?"


def test_a_caller_gets_all_output_before_the_guest_closes(guest: Guest) -> None:
    caller = guest.call()
    exchange(caller, guest)
    guest.end.sendall(b"bye")
    guest.end.close()
    assert caller.recv(100) == b"bye"
    assert caller.recv(100) == b""


def test_only_allowed_hosts_are_served_over_tcp(guest: Guest) -> None:
    assert guest.call(guest.listen("192.0.2.1")).recv(100) == b""
    exchange(guest.call(guest.listen("192.0.2.1", "127.0.0.1")), guest)


def test_short_messages_over_tcp_do_not_wait_for_each_other(guest: Guest) -> None:
    exchange(guest.call(guest.listen("127.0.0.1")), guest)
    assert guest.line.caller
    assert guest.line.caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
