"""The SSH connection to one guest: pinned host key, one key pair, commands with both streams drained."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import paramiko

from pytest_virtainers.durations import phase
from pytest_virtainers.errors import SSHError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from pytest_virtainers.keys import Keys

PORT = 22
_CHUNK_BYTES = 256 * 1024
_POLL_SECONDS = 0.25
_LINGER_SECONDS = 1.0
_WINDOW_BYTES = 16 * 1024 * 1024

# paramiko reports every failed attempt with a traceback. What matters of it is in our own errors.
_LOG_CHANNEL = "pytest_virtainers.paramiko"
logging.getLogger(_LOG_CHANNEL).addHandler(logging.NullHandler())
logging.getLogger(_LOG_CHANNEL).propagate = False

FAILURES = (paramiko.SSHException, OSError, EOFError)
"""What paramiko raises when the guest cannot be reached."""


class TimedOut(Exception):
    """The command did not end in time."""


class Connection:
    """A logged-in SSH connection."""

    def __init__(self, sock: Any, user: str, keys: Keys, timeout: float) -> None:
        """Log in over `sock` within `timeout` seconds.

        Raises:
            paramiko.BadHostKeyException: the guest's host key is not the one that was given to it.
            paramiko.SSHException, OSError, EOFError: anything else that went wrong (`FAILURES`).
        """
        self._transport = paramiko.Transport(sock)
        self._transport.set_log_channel(_LOG_CHANNEL)
        self._transport.banner_timeout = self._transport.auth_timeout = timeout
        try:
            self._log_in(user, keys.login.paramiko(), keys.host.paramiko(), timeout)
        except BaseException:
            self.close()
            sock.close()
            raise

    def _log_in(self, user: str, key: paramiko.PKey, host_key: paramiko.PKey, timeout: float) -> None:
        # Ours first: of several host keys the guest has to show the one that it was given.
        options, ours = self._transport.get_security_options(), host_key.get_name()
        options.key_types = [ours, *(each for each in options.key_types if each != ours)]
        with phase("key exchange"):
            self._transport.start_client(timeout=timeout)
        shown = self._transport.get_remote_server_key()
        if shown != host_key:
            raise paramiko.BadHostKeyException("guest", shown, host_key)
        with phase("authentication"):
            self._transport.auth_publickey(user, key)
        if not self._transport.is_authenticated():
            raise paramiko.AuthenticationException("the key alone does not let us log in")

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as this side knows."""
        return self._transport.is_active()

    def execute(
        self,
        command: str,
        *,
        stdin: IO[bytes] | None,
        stdout: Callable[[bytes], object],
        stderr: Callable[[bytes], object],
        deadline: float | None,
        check: Callable[[], None],
    ) -> int:
        """Run `command` in the guest's shell; give its exit code, -1 when a signal ended it.

        Both streams are drained as they come (reading one to its end first deadlocks once the other has filled
        its window). When the command has ended but a process it left behind holds the streams open, they are
        given one more second.

        Args:
            command: for the login shell of the user.
            stdin: read to its end and written to the command's standard input.
            stdout: called with each piece of standard output.
            stderr: called with each piece of standard error.
            deadline: on `time.monotonic()`; holds even when the guest no longer answers.
            check: called four times a second; raises when there is no point in waiting on.

        Raises:
            TimedOut: the deadline passed.
            SSHError: the connection broke.
        """
        with phase("open channel"):
            channel = self._open(command, deadline)
        if stdin is None:
            channel.shutdown_write()
        else:
            threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
        try:
            with phase("command"):
                return self._follow(channel, command, stdout=stdout, stderr=stderr, deadline=deadline, check=check)
        finally:
            channel.close()

    def _follow(
        self,
        channel: paramiko.Channel,
        command: str,
        *,
        stdout: Callable[[bytes], object],
        stderr: Callable[[bytes], object],
        deadline: float | None,
        check: Callable[[], None],
    ) -> int:
        last_seen = time.monotonic()
        while True:
            select.select([channel], [], [], _POLL_SECONDS)
            drained = _drain(channel, stdout, stderr)
            now = time.monotonic()
            last_seen = now if drained else last_seen
            if not drained and channel.exit_status_ready():
                if channel.eof_received or channel.closed or now - last_seen > _LINGER_SECONDS:
                    return channel.recv_exit_status()
            elif not drained and (channel.closed or not self.alive):
                raise SSHError(f"the SSH connection broke while {command!r} ran")
            if deadline is not None and now > deadline:
                raise TimedOut
            check()

    def _open(self, command: str, deadline: float | None) -> paramiko.Channel:
        remaining = None if deadline is None else max(0.1, deadline - time.monotonic())
        try:
            channel = self._transport.open_session(window_size=_WINDOW_BYTES, timeout=remaining)
            channel.settimeout(remaining)
            channel.exec_command(command)
        except FAILURES as error:
            if deadline is not None and time.monotonic() >= deadline - _POLL_SECONDS:
                raise TimedOut from error
            raise SSHError(f"{command!r} could not be started over SSH: {error or type(error).__name__}") from error
        return channel

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError, EOFError):
            self._transport.close()


def dial(address: str, timeout: float) -> socket.socket:
    """Open a TCP connection to the SSH port of `address`."""
    sock = socket.create_connection((address, PORT), timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Closed, it is gone at once. Else our kernel would go on asking for a VM that has ended, and in the meantime keep
    # the packets to the next VM at that address waiting: up to a second.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def _drain(channel: paramiko.Channel, stdout: Callable[[bytes], object], stderr: Callable[[bytes], object]) -> bool:
    """Pass on what has arrived; tell whether there was anything."""
    drained = False
    while channel.recv_ready():
        stdout(channel.recv(_CHUNK_BYTES))
        drained = True
    while channel.recv_stderr_ready():
        stderr(channel.recv_stderr(_CHUNK_BYTES))
        drained = True
    return drained


def _feed(channel: paramiko.Channel, source: IO[bytes]) -> None:
    # A command may end, or the connection break, before it has read everything; `execute` sees that itself.
    with contextlib.suppress(OSError, paramiko.SSHException):
        channel.settimeout(None)
        while data := source.read(_CHUNK_BYTES):
            channel.sendall(data)
        channel.shutdown_write()
