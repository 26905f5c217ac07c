"""An SSH server in this process, at the other end of a socket pair."""

import socket
import threading
from typing import Any

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_CONNECT_FAILED,
    OPEN_SUCCEEDED,
)

from pytest_virtainers.ssh import client, resumable
from pytest_virtainers.ssh.keys import Keys

KEYS = Keys.generate()
SECONDS = 60.0


class Sshd(paramiko.ServerInterface):
    """A server that accepts the key, and answers a command with its name in capitals and exit code 7."""

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
        channel.recv(1)  # returns when the client has been informed of the command's start
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
        # OpenSSH sends its EXT_INFO once, paramiko after each key exchange.
        self.server: Any = paramiko.Transport(theirs, server_sig_algs=False, **options)
        self.server.set_log_channel(client.LOG_CHANNEL)
        self.server.add_server_key(KEYS.host.paramiko())
        self.sshd = Sshd()
        self.server.start_server(threading.Event(), self.sshd)

    def log_in(self) -> client.Connection:
        """Log in with a client that can leave without closing the session."""
        return client.log_in(self.end.dup(), "debian", KEYS, SECONDS, resumable.Recording)

    def close(self) -> None:
        self.sshd.may_close.set()
        self.end.close()
        self.server.close()
        self.server.join(SECONDS)


def execute(connection: client.Connection, command: str = "first") -> tuple[bytes, int]:
    output = bytearray()
    code = connection.execute(
        command, stdin=None, stdout=output.extend, stderr=bytes, deadline=None, check=lambda: None
    )
    return bytes(output), code
