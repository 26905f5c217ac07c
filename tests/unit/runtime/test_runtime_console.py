"""The serial console, its readers, and one that stalls."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest
from virtainer.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Line:
    """A console between the guest's end of a line, a pipe as stdout, and a socket for clients."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "console.log"
        self.path = str(folder / "console.sock")
        self.guest, self.line = socket.socketpair()
        self.guest.settimeout(5)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.path)
        self.server.listen()
        self.reader, self.writer = os.pipe()
        self.console = Console(self.line, self.log, self.server, self.writer)

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(self.path)
        client.sendall(b"\r")
        assert self.guest.recv(1) == b"\r"  # only now is it surely among the clients
        return client

    def wait_for_log(self, length: int) -> None:
        deadline = time.monotonic() + 5
        while self.log.stat().st_size < length:
            assert time.monotonic() < deadline, f"the log has {self.log.stat().st_size} of {length} bytes"
            time.sleep(0.01)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.guest.close()
    os.close(line.reader)
    line.console.finish(5)
    os.close(line.writer)
    line.line.close()
    line.console._log.close()
    line.server.shutdown(socket.SHUT_RDWR)
    line.server.close()
    for client in line.console._clients:  # at a virtainer's end the process goes, and they with it
        client.close()


def test_the_guest_is_heard_in_the_log_on_stdout_and_by_a_client(line: Line) -> None:
    with line.client() as client:
        line.guest.sendall(b"login: ")
        assert client.recv(100) == b"login: "
    assert os.read(line.reader, 100) == b"login: "
    assert line.log.read_bytes() == b"login: "


def test_a_client_is_heard_by_the_guest_and_may_leave(line: Line) -> None:
    with line.client() as client:
        client.sendall(b"root\n")
        assert line.guest.recv(100) == b"root\n"
    line.guest.sendall(b"Password: ")
    assert os.read(line.reader, 100) == b"Password: "


def test_a_stalled_stdout_stalls_nobody_and_loses_nothing(line: Line) -> None:
    output = os.urandom(2**20)  # more than a pipe holds
    line.guest.sendall(output)
    line.wait_for_log(len(output))
    heard = b""
    while len(heard) < len(output):
        heard += os.read(line.reader, 65536)
    assert heard == output


def test_a_client_that_does_not_read_stalls_nobody(line: Line) -> None:
    with line.client():
        line.guest.sendall(bytes(2**21))
        heard = 0
        while heard < 2**21:
            heard += len(os.read(line.reader, 65536))


def test_what_is_left_reaches_stdout_before_the_end(line: Line) -> None:
    line.guest.sendall(b"reboot: Power down\n")
    line.guest.close()
    line.console.finish(5)
    assert os.read(line.reader, 100) == b"reboot: Power down\n"
