"""Sessions resumed by another client, unnoticed by the SSH server."""

import gc
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import paramiko
import pytest
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
)

from pytest_virtainers.ssh import client, resumable
from tests.unit.ssh.fake_sshd import KEYS, SECONDS, Wire, execute


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def wire(stack: ExitStack) -> Wire:
    wire = Wire()
    stack.callback(wire.close)
    return wire


def frozen(wire: Wire) -> resumable.Session:
    """Log in, run a command, and return the session as a template's manifest stores it."""
    first = wire.log_in()
    assert execute(first) == (b"FIRST", 7)
    session = resumable.freeze(first, SECONDS)
    first.close()
    first.transport.join(SECONDS)
    return resumable.Session(**json.loads(json.dumps(asdict(session))))


def test_a_session_is_resumed_by_another_client(wire: Wire, stack: ExitStack) -> None:
    second = resumable.resume(wire.end, frozen(wire))
    stack.callback(second.close)
    assert second.answers(SECONDS)
    assert second.transport.is_authenticated()
    assert execute(second, "second") == (b"SECOND", 7)


@pytest.mark.parametrize("starts", ["client", "server"])
def test_both_sides_can_exchange_keys_after_a_resume(
    starts: str, wire: Wire, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = frozen(wire)
    monkeypatch.setattr(paramiko.Transport, "_CLIENT_ID", "another_version")
    second = resumable.resume(wire.end, session)
    stack.callback(second.close)
    assert second.answers(SECONDS)
    before = second.transport.H
    (second.transport if starts == "client" else wire.server).renegotiate_keys()
    assert second.answers(SECONDS)
    assert before != second.transport.H
    assert execute(second, "second") == (b"SECOND", 7)


def test_a_resumed_session_can_be_frozen_and_used(wire: Wire, stack: ExitStack) -> None:
    second = resumable.resume(wire.end.dup(), frozen(wire))
    stack.callback(second.close)
    assert execute(second, "second") == (b"SECOND", 7)
    again = resumable.freeze(second, SECONDS)
    transport: Any = second.transport
    assert transport.at_rest
    assert execute(second, "on") == (b"ON", 7)
    assert not transport.at_rest
    assert resumable.freeze(second, SECONDS).keys != again.keys
    latest = resumable.freeze(second, SECONDS)
    second.close()
    second.transport.join(SECONDS)
    third = resumable.resume(wire.end, latest)
    stack.callback(third.close)
    assert execute(third, "third") == (b"THIRD", 7)


def test_a_session_in_use_is_not_frozen(wire: Wire, stack: ExitStack) -> None:
    first = wire.log_in()
    stack.callback(first.close)
    assert first.open_ahead(SECONDS)
    with pytest.raises(resumable.Unsuitable, match="a command is still running in the session"):
        resumable.freeze(first, SECONDS)
    first.close_ahead()
    resumable.freeze(first, SECONDS)


def test_a_session_over_the_network_is_not_frozen(wire: Wire, stack: ExitStack) -> None:
    first = client.log_in(wire.end.dup(), "debian", KEYS, SECONDS)
    stack.callback(first.close)
    with pytest.raises(resumable.Unsuitable, match="the session does not use the serial port"):
        resumable.freeze(first, SECONDS)


def test_a_channel_opened_ahead_is_used_by_the_next_command(wire: Wire, stack: ExitStack) -> None:
    second = resumable.resume(wire.end, frozen(wire))
    stack.callback(second.close)
    channels = wire.sshd.channels
    assert second.open_ahead(SECONDS)
    assert wire.sshd.channels == channels + 1
    assert execute(second, "second") == (b"SECOND", 7)
    assert wire.sshd.channels == channels + 1
    assert execute(second, "third") == (b"THIRD", 7)
    assert wire.sshd.channels == channels + 2


def test_a_silent_connection_does_not_answer(wire: Wire, stack: ExitStack) -> None:
    ours, theirs = socket.socketpair()
    stack.enter_context(theirs)
    connection = resumable.resume(ours, frozen(wire))
    stack.callback(connection.close)
    assert not connection.answers(0.01)
    assert not connection.open_ahead(0.01)


def test_a_server_without_strict_key_exchange_is_refused(stack: ExitStack) -> None:
    wire = Wire(strict_kex=False)
    stack.callback(wire.close)
    first = wire.log_in()
    stack.callback(first.close)
    with pytest.raises(resumable.Unsuitable, match="does not support strict key exchange"):
        resumable.freeze(first, SECONDS)


@pytest.mark.parametrize("table", ["_cipher_info", "_mac_info"])
def test_a_client_without_a_negotiated_algorithm_reports_it(
    table: str, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = frozen(wire)
    agreed = session.facts["remote_cipher" if table == "_cipher_info" else "remote_mac"]
    known = {name: info for name, info in getattr(paramiko.Transport, table).items() if name != agreed}
    monkeypatch.setattr(paramiko.Transport, table, known)
    with pytest.raises(resumable.Unsuitable, match=f"this paramiko does not support '{agreed}'"):
        resumable.resume(wire.end, session)
    assert wire.end.fileno() == -1, "closed"


def test_keys_are_exchanged_only_after_all_channels_are_closed(wire: Wire, stack: ExitStack) -> None:
    # paramiko has no public way to ignore a message
    handlers = wire.server._channel_handler_table  # noqa: SLF001
    ignoring = {**handlers, MSG_CHANNEL_CLOSE: lambda _channel, _message: None}
    wire.server._channel_handler_table = ignoring  # noqa: SLF001
    first = wire.log_in()
    stack.callback(first.close)
    execute(first, "slow")
    execute(first, "quick")
    gc.collect()
    with pytest.raises(resumable.Unsuitable, match=r"did not exchange keys within 0\.05 s"):
        resumable.freeze(first, 0.05)


def test_paramikos_log_does_not_reach_a_tests_logs(
    wire: Wire, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    first = wire.log_in()
    stack.callback(first.close)
    wire.sshd.refuses = True
    with pytest.raises(paramiko.ChannelException):
        first.transport.open_session()
    assert not caplog.records
