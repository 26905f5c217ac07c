"""The session that goes on in another client, with an SSH server that is not told about the change."""

import gc
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import paramiko
import pytest
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    MSG_CHANNEL_CLOSE,
    OPEN_FAILED_CONNECT_FAILED,
    OPEN_SUCCEEDED,
)

from pytest_virtainers.ssh import client, resumable
from pytest_virtainers.ssh.keys import Keys

KEYS = Keys.generate()
SECONDS = 10.0


class Sshd(paramiko.ServerInterface):
    """Lets the key in; a command is answered with its name in capitals, and exit code 7."""

    def __init__(self) -> None:
        self.may_close = threading.Event()  # the channel of the command "slow"
        self.channels = 0
        self.refuses = False

    def get_allowed_auths(self, _username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, _username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL if key == KEYS.login.paramiko() else AUTH_FAILED

    def check_channel_request(self, _kind: str, _number: int) -> int:
        self.channels += 1
        if self.refuses:
            return OPEN_FAILED_CONNECT_FAILED
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._answer, args=(channel, command), daemon=True).start()
        return True

    def _answer(self, channel: paramiko.Channel, command: bytes) -> None:
        channel.recv(1)  # its end comes when the client knows that the command has started
        channel.sendall(command.upper())
        channel.send_exit_status(7)
        channel.shutdown_write()
        if command == b"slow":
            self.may_close.wait()
        channel.close()


class Wire:
    """A socket pair with a server at its other end."""

    def __init__(self, **options: Any) -> None:
        self.end, theirs = socket.socketpair()
        # OpenSSH sends its EXT_INFO once; paramiko would after each key exchange.
        self.server: Any = paramiko.Transport(theirs, server_sig_algs=False, **options)
        self.server.set_log_channel(client.LOG_CHANNEL)
        self.server.add_server_key(KEYS.host.paramiko())
        self.sshd = Sshd()
        self.server.start_server(threading.Event(), self.sshd)

    def log_in(self) -> client.Connection:
        """Log in with a client that may go without a word to the server."""
        return client.log_in(self.end.dup(), "debian", KEYS, SECONDS, resumable.Recording)

    def close(self) -> None:
        self.sshd.may_close.set()
        self.end.close()
        self.server.close()
        self.server.join(SECONDS)


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
    """Log in, do something, and give what is kept of the session in a template's manifest."""
    first = wire.log_in()
    assert execute(first) == (b"FIRST", 7)
    session = resumable.freeze(first, SECONDS)
    first.close()
    first.transport.join(SECONDS)
    return resumable.Session(**json.loads(json.dumps(asdict(session))))


def execute(connection: client.Connection, command: str = "first") -> tuple[bytes, int]:
    output = bytearray()
    code = connection.execute(
        command, stdin=None, stdout=output.extend, stderr=bytes, deadline=None, check=lambda: None
    )
    return bytes(output), code


def test_a_session_goes_on_in_another_client(wire: Wire, stack: ExitStack) -> None:
    second = resumable.resume(wire.end, frozen(wire))
    stack.callback(second.close)
    assert second.answers(SECONDS)
    assert second.transport.is_authenticated()
    assert execute(second, "second") == (b"SECOND", 7)


@pytest.mark.parametrize("asks", ["client", "server"])
def test_either_side_may_change_keys_after_that(
    asks: str, wire: Wire, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = frozen(wire)
    monkeypatch.setattr(paramiko.Transport, "_CLIENT_ID", "another_version")
    second = resumable.resume(wire.end, session)
    stack.callback(second.close)
    assert second.answers(SECONDS)
    before = second.transport.H
    (second.transport if asks == "client" else wire.server).renegotiate_keys()
    assert second.answers(SECONDS)
    assert before != second.transport.H
    assert execute(second, "second") == (b"SECOND", 7)


def test_what_goes_on_may_be_frozen_in_its_turn_and_goes_on_itself(wire: Wire, stack: ExitStack) -> None:
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
    with pytest.raises(resumable.Unsuitable, match="a command still runs in it"):
        resumable.freeze(first, SECONDS)
    first.close_ahead()
    resumable.freeze(first, SECONDS)


def test_nor_is_one_that_is_not_on_the_line(wire: Wire, stack: ExitStack) -> None:
    first = client.log_in(wire.end.dup(), "debian", KEYS, SECONDS)
    stack.callback(first.close)
    with pytest.raises(resumable.Unsuitable, match="it is not on the line"):
        resumable.freeze(first, SECONDS)


def test_a_channel_that_was_opened_ahead_is_the_next_commands(wire: Wire, stack: ExitStack) -> None:
    second = resumable.resume(wire.end, frozen(wire))
    stack.callback(second.close)
    channels = wire.sshd.channels
    assert second.open_ahead(SECONDS)
    assert wire.sshd.channels == channels + 1
    assert execute(second, "second") == (b"SECOND", 7)
    assert wire.sshd.channels == channels + 1
    assert execute(second, "third") == (b"THIRD", 7)
    assert wire.sshd.channels == channels + 2


def test_on_a_silent_line_nobody_answers(wire: Wire, stack: ExitStack) -> None:
    ours, theirs = socket.socketpair()
    stack.enter_context(theirs)
    connection = resumable.resume(ours, frozen(wire))
    stack.callback(connection.close)
    assert not connection.answers(0.01)
    assert not connection.open_ahead(0.01)


def test_a_server_that_does_not_count_anew_is_refused(stack: ExitStack) -> None:
    wire = Wire(strict_kex=False)
    stack.callback(wire.close)
    first = wire.log_in()
    stack.callback(first.close)
    with pytest.raises(resumable.Unsuitable, match="does not know the strict key exchange"):
        resumable.freeze(first, SECONDS)


@pytest.mark.parametrize("table", ["_cipher_info", "_mac_info"])
def test_a_client_that_lacks_what_was_agreed_on_says_so_and_hangs_up(
    table: str, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = frozen(wire)
    agreed = session.facts["remote_cipher" if table == "_cipher_info" else "remote_mac"]
    known = {name: info for name, info in getattr(paramiko.Transport, table).items() if name != agreed}
    monkeypatch.setattr(paramiko.Transport, table, known)
    with pytest.raises(resumable.Unsuitable, match=f"our paramiko does not know '{agreed}'"):
        resumable.resume(wire.end, session)
    assert wire.end.fileno() == -1, "closed"


def test_keys_are_not_changed_before_the_server_has_closed_all_channels(wire: Wire, stack: ExitStack) -> None:
    handlers = wire.server._channel_handler_table
    wire.server._channel_handler_table = {**handlers, MSG_CHANNEL_CLOSE: lambda _channel, _message: None}
    first = wire.log_in()
    stack.callback(first.close)
    execute(first, "slow")
    execute(first, "quick")
    gc.collect()
    with pytest.raises(resumable.Unsuitable, match=r"did not change keys within 0\.05 s"):
        resumable.freeze(first, 0.05)


def test_paramikos_own_words_are_not_among_a_tests_logs(
    wire: Wire, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    first = wire.log_in()
    stack.callback(first.close)
    wire.sshd.refuses = True
    with pytest.raises(paramiko.ChannelException):
        first.transport.open_session()
    assert not caplog.records
