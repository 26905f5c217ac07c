"""The serial console, its readers, and one that stalls."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from virtainer import console
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
        client.settimeout(60)
        client.connect(self.path)
        client.sendall(b"\r")
        assert self.guest.recv(1) == b"\r"  # now it is certainly among the clients
        return client

    def wait_for_log(self, length: int) -> None:
        deadline = time.monotonic() + 60
        while self.log.stat().st_size < length:
            assert time.monotonic() < deadline, f"the log has {self.log.stat().st_size} of {length} bytes"
            time.sleep(0.01)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.guest.close()
    os.close(line.reader)
    line.console.finish(60)
    os.close(line.writer)
    line.line.close()
    line.console.log.close()
    line.server.shutdown(socket.SHUT_RDWR)
    line.server.close()
    for client in line.console.clients:  # in a virtainer they end with its process
        client.close()


def test_output_goes_to_the_log_stdout_and_clients(line: Line) -> None:
    with line.client() as client:
        line.guest.sendall(b"login: ")
        assert client.recv(100) == b"login: "
    assert os.read(line.reader, 100) == b"login: "
    assert line.log.read_bytes() == b"login: "


def test_input_of_clients_reaches_the_guest_and_clients_can_leave(line: Line) -> None:
    with line.client() as client:
        client.sendall(b"root\n")
        assert line.guest.recv(100) == b"root\n"
    line.guest.sendall(b"Password: ")
    assert os.read(line.reader, 100) == b"Password: "


def test_a_stalled_stdout_blocks_no_other_reader_and_is_buffered(line: Line) -> None:
    output = os.urandom(2**20)  # more than a pipe holds
    line.guest.sendall(output)
    line.wait_for_log(len(output))
    heard = b""
    while len(heard) < len(output):
        heard += os.read(line.reader, 65536)
    assert heard == output


def test_a_stalled_stdout_loses_the_oldest_output_and_shows_how_much(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_WAITING", 2**18)
    line.guest.sendall(2**21 * b"x" + b"the end")  # the guest is not blocked
    line.guest.close()
    heard = b""
    while not heard.endswith(b"the end"):
        heard += os.read(line.reader, 65536)
    mark = rb"\r\n\[\.\.\. (\d+) bytes of the console were lost here \.\.\.\]\r\n"
    lost = sum(int(each) for each in re.findall(mark, heard))
    assert lost > 2**20
    assert len(re.sub(mark, b"", heard)) + lost == 2**21 + len("the end")


def test_the_log_is_bounded_and_keeps_the_newest_output(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_LOG_SIZE", 2**17)
    drain = threading.Thread(
        target=lambda: [None for _ in iter(lambda: os.read(line.reader, 65536)[-7:], b"the end")]
    )
    drain.start()
    line.guest.sendall(b"the beginning" + 2**20 * b"x")
    line.guest.sendall(b"the end")
    drain.join(60)
    files = sorted(line.log.parent.glob("console.log*"))
    assert [each.name for each in files] == ["console.log", "console.log.1"]
    assert all(each.stat().st_size < 2**18 for each in files)
    assert (files[1].read_bytes() + files[0].read_bytes()).endswith(b"xthe end")


def test_a_client_that_does_not_read_blocks_no_other_reader(line: Line) -> None:
    with line.client():
        line.guest.sendall(bytes(2**21))
        heard = 0
        while heard < 2**21:
            heard += len(os.read(line.reader, 65536))


def test_finish_waits_until_stdout_has_the_rest(line: Line) -> None:
    line.guest.sendall(b"reboot: Power down\n")
    line.guest.close()
    line.console.finish(60)
    assert os.read(line.reader, 100) == b"reboot: Power down\n"
