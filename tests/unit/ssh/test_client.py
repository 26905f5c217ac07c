"""Commands that print faster than their output is processed, and global requests."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import paramiko
import pytest

from pytest_virtainers import VMGone
from pytest_virtainers.ssh import client
from pytest_virtainers.support.interruptible import TimedOut
from tests.unit.ssh.fake_sshd import KEYS, SECONDS, Sshd

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024


class Printer(Sshd):
    """`flood` prints forever, `plenty` prints 3 MiB, and a background process of `behind` prints after its end.

    `mute` closes its output at once, and ends after a second.
    Port forwarding is granted after a pause, and keepalives are refused.
    """

    def check_port_forward_request(self, _address: str, port: int) -> int:
        time.sleep(0.2)
        return port

    def _answer(self, channel: paramiko.Channel, command: bytes) -> None:
        with contextlib.suppress(*client.FAILURES):
            if command == b"flood":
                channel.sendall_stderr(b"!")
            while command == b"flood":
                channel.sendall(bytes(MIB))
            if command == b"mute":
                channel.shutdown_write()
                time.sleep(1)
            else:
                channel.sendall(bytes(3 * MIB))
            channel.send_exit_status(7)
            while command == b"behind":
                channel.sendall(b"x")
                time.sleep(0.01)
            channel.shutdown_write()
            channel.close()


@pytest.fixture
def connection() -> Iterator[client.Connection]:
    ours, theirs = socket.socketpair()
    server: Any = paramiko.Transport(theirs, server_sig_algs=False)
    server.set_log_channel(client.LOG_CHANNEL)
    server.add_server_key(KEYS.host.paramiko())
    server.start_server(threading.Event(), Printer())
    connection = client.log_in(ours, "debian", KEYS, SECONDS)
    yield connection
    connection.close()
    server.close()
    server.join(SECONDS)


def pass_check() -> None:
    pass


def slowly(data: bytes) -> None:
    assert data
    time.sleep(0.02)


def test_a_deadline_applies_while_output_arrives_faster_than_it_is_processed(connection: client.Connection) -> None:
    errors = bytearray()
    with pytest.raises(TimedOut):
        connection.execute(
            "flood", stdin=None, stdout=slowly, stderr=errors.extend, deadline=time.monotonic() + 3, check=pass_check
        )
    assert errors == b"!", "the other stream is read, too"


def test_a_check_runs_while_output_arrives_faster_than_it_is_processed(connection: client.Connection) -> None:
    def raise_ended() -> None:
        raise VMGone("it has ended")

    with pytest.raises(VMGone):
        connection.execute("flood", stdin=None, stdout=slowly, stderr=bytes, deadline=None, check=raise_ended)


def test_slow_processing_loses_no_output(connection: client.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_AFTERMATH_SECONDS", 0.01)
    taken = []

    def take(data: bytes) -> None:
        slowly(data)
        taken.append(len(data))

    assert connection.execute("plenty", stdin=None, stdout=take, stderr=bytes, deadline=None, check=pass_check) == 7
    assert sum(taken) == 3 * MIB


def test_streams_kept_open_by_background_processes_are_abandoned(
    connection: client.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_AFTERMATH_SECONDS", 0.1)
    output = bytearray()
    assert (
        connection.execute("behind", stdin=None, stdout=output.extend, stderr=bytes, deadline=None, check=pass_check)
        == 7
    )
    assert len(output) >= 3 * MIB


def test_waiting_for_a_command_that_has_closed_its_output_costs_nothing(connection: client.Connection) -> None:
    checks = []
    code = connection.execute(
        "mute", stdin=None, stdout=bytes, stderr=bytes, deadline=None, check=lambda: checks.append(1)
    )
    assert code == 7
    assert 1 < len(checks) < 10


def test_a_refused_keepalive_does_not_answer_another_request(connection: client.Connection) -> None:
    asking = threading.Timer(0.05, connection.answers, (SECONDS,))
    asking.start()
    given = connection.listen(8001, lambda *_: None)
    asking.join()
    assert given == 8001
    assert connection.answers(SECONDS)
