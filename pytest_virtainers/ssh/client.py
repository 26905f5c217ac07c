"""SSH connections to a guest: log in with a pinned host key, and run commands."""

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

from pytest_virtainers.errors import SSHError
from pytest_virtainers.support.forks import close_in_child, disown_in_child, silence
from pytest_virtainers.support.interruptible import POLL_SECONDS, TimedOut, run_interruptible
from pytest_virtainers.support.timings import phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from pytest_virtainers.ssh.keys import Keys

PORT = 22
_CHUNK_BYTES = 256 * 1024
# Seconds that streams may stay open after the end of their command: without data, and in total.
_LINGER_SECONDS, _AFTERMATH_SECONDS = 1.0, 5.0
_HANG_UP_SECONDS = 2.0
_CLOSE_SECONDS = 0.1
_BROKEN = "the SSH connection broke while {!r} ran"
_WINDOW_BYTES = 16 * 1024 * 1024

# paramiko logs every failed attempt with a traceback. Our own errors have the essential part.
LOG_CHANNEL = "pytest_virtainers.paramiko"
# Set the level, because pytest also captures loggers that do not propagate.
logging.getLogger(LOG_CHANNEL).setLevel(logging.CRITICAL + 1)

FAILURES = (paramiko.SSHException, OSError, EOFError)
"""The exceptions that paramiko raises when the guest cannot be reached."""


class Connection:
    """A logged-in SSH connection.

    Attributes:
        transport: the paramiko transport, for other uses.
        stale: why the connection no longer leads to the guest; empty while it does, as far as is known.
    """

    def __init__(self, transport: paramiko.Transport) -> None:
        self.transport = transport
        self.stale = ""
        self._ahead: list[paramiko.Channel] = []
        self._asking = threading.Lock()
        disown_in_child(self)

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as this side knows."""
        return self.transport.is_active()

    @property
    def peer(self) -> str:
        """The remote address; empty if the connection goes through the engine, or is closed."""
        sock: Any = self.transport.sock
        try:
            return str(sock.getpeername()[0]) if isinstance(sock, socket.socket) else ""
        except OSError:
            return ""

    def execute(
        self,
        command: str,
        *,
        stdin: IO[bytes] | None,
        stdout: Callable[[bytes], object],
        stderr: Callable[[bytes], object],
        deadline: float | None,
        check: Callable[[], None],
        started: Callable[[], object] = lambda: None,
    ) -> int:
        """Run `command` in the guest's shell and return its exit code, or -1 if a signal ended it.

        Both streams are read as data arrives: reading one to its end first would deadlock when the other has filled
        its window. If a process that the command left behind keeps the streams open, reading ends after one second
        without data, or five seconds after the end of the command.

        Args:
            command: for the login shell of the user.
            stdin: file that is copied to the command's standard input.
            stdout: called with each piece of standard output.
            stderr: called with each piece of standard error.
            deadline: on `time.monotonic()`; applies even if the guest no longer answers.
            check: called four times a second; raises to end the wait.
            started: called when the guest has confirmed the start of the command.

        Raises:
            TimedOut: the deadline has passed.
            SSHError: the connection broke.
        """
        __tracebackhide__ = True
        with phase("open channel"):
            channel = self._open(command, deadline, check)
        started()
        if stdin is None:
            channel.shutdown_write()
        else:
            threading.Thread(target=feed, args=(channel, stdin), daemon=True).start()
        try:
            with phase("command"):
                code = self._follow(channel, command, stdout=stdout, stderr=stderr, deadline=deadline, check=check)
        except BaseException:
            self._hang_up(channel)
            raise
        channel.close()
        return code

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
        __tracebackhide__ = True
        last_seen, ended = time.monotonic(), float("inf")
        while True:
            if channel.eof_received and not channel.recv_ready() and not channel.recv_stderr_ready():
                channel.status_event.wait(POLL_SECONDS)  # select would return at once, again and again
            else:
                select.select([channel], [], [], POLL_SECONDS)
            drained = _drain(channel, stdout, stderr)
            now = time.monotonic()
            last_seen = now if drained else last_seen
            if channel.exit_status_ready():
                over = channel.eof_received or channel.closed or now - last_seen > _LINGER_SECONDS
                behind = channel.recv_ready() or channel.recv_stderr_ready()
                ended = ended if behind else min(ended, now)
                if (over and not behind) or now - ended > _AFTERMATH_SECONDS:
                    return self._exit_code(channel, command)
            elif not drained and (channel.closed or not self.alive):
                raise SSHError(_BROKEN.format(command))
            if deadline is not None and now > deadline:
                raise TimedOut
            check()

    def _exit_code(self, channel: paramiko.Channel, command: str) -> int:
        code = channel.recv_exit_status()
        if code == -1:  # a signal ended the command, or the connection broke
            self.transport.join(_CLOSE_SECONDS)
            if not self.alive:
                raise SSHError(_BROKEN.format(command))
        return code

    def _open(self, command: str, deadline: float | None, check: Callable[[], None]) -> paramiko.Channel:
        __tracebackhide__ = True

        def start() -> paramiko.Channel:
            try:  # atomically: other threads start commands, too
                channel = self._ahead.pop()
            except IndexError:
                channel = self._open_channel()
            channel.exec_command(command)
            return channel

        try:
            # paramiko has a time limit only for the first of the two steps.
            return run_interruptible(start, check=check, deadline=deadline, unwanted=self._hang_up)
        except FAILURES as error:
            raise SSHError(f"{command!r} could not be started over SSH: {error or type(error).__name__}") from error

    def _open_channel(self) -> paramiko.Channel:
        return self.transport.open_session(window_size=_WINDOW_BYTES)

    def open_ahead(self, seconds: float) -> bool:
        """Open a channel for the next command; return whether the guest opened it within so many seconds."""
        try:
            channel = run_interruptible(self._open_channel, check=lambda: None, deadline=time.monotonic() + seconds)
        except (*FAILURES, TimedOut):
            return False
        self._ahead.append(channel)
        return True

    def close_ahead(self) -> None:
        """Close the channel that `open_ahead` opened, if it was not used."""
        while self._ahead:
            self._ahead.pop().close()

    def _hang_up(self, channel: paramiko.Channel) -> None:
        """Close a channel, or the whole connection if closing the channel is stuck."""
        closing = threading.Thread(target=channel.close, daemon=True)
        closing.start()
        closing.join(_HANG_UP_SECONDS)
        if closing.is_alive():
            self.close()

    def answers(self, seconds: float) -> bool:
        """Return whether the guest answers within so many seconds."""
        try:
            # sshd must answer this request even if it does not know it.
            run_interruptible(
                lambda: self.request("keepalive@openssh.com"),
                check=lambda: None,
                deadline=time.monotonic() + seconds,
            )
        except (*FAILURES, TimedOut):
            return False
        return self.alive

    def request(self, kind: str, data: tuple[str, int] | None = None) -> None:
        """Send a global request and wait for its answer, without a time limit."""
        with self._asking:  # paramiko takes any answer as that to the latest request
            self.transport.global_request(kind, data, wait=True)

    def change_keys(self) -> None:
        """Exchange new keys with the server; waits like `request`."""
        with self._asking:  # an answer to another request would look like the end of the key exchange
            # paramiko marks a channel as closed before its thread has sent the answer. A key exchange in between
            # would deadlock: the answer waits for the new keys, and only that thread can receive them.
            self.transport.global_request("keepalive@openssh.com", wait=True)
            self.transport.renegotiate_keys()

    def listen(self, port: int, arrived: Callable[[paramiko.Channel, Any, Any], object]) -> int:
        """Make the guest's sshd listen on a port of its localhost and return the port; waits like `request`."""
        with self._asking:
            given: int = self.transport.request_port_forward("127.0.0.1", port, arrived)
        return given

    def disown(self) -> None:
        """Leave the session to the parent, in a forked child."""
        silence(self.transport)
        self._asking = threading.Lock()
        self._ahead = []

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError, EOFError):
            self.transport.close()


def log_in(
    sock: Any, user: str, keys: Keys, timeout: float, kind: Callable[[Any], paramiko.Transport] = paramiko.Transport
) -> Connection:
    """Log in over `sock` within `timeout` seconds.

    Raises:
        paramiko.BadHostKeyException: the guest does not have the expected host key.
        paramiko.SSHException, OSError, EOFError: any other failure (`FAILURES`).
    """
    transport = kind(sock)
    transport.set_log_channel(LOG_CHANNEL)
    deadline = time.monotonic() + timeout

    def left() -> float:
        return max(0.1, deadline - time.monotonic())

    try:
        host_key, transport.banner_timeout = keys.host.public_key(), timeout
        # Prefer the type of the expected key: the guest may have several host keys.
        options, ours = transport.get_security_options(), host_key.get_name()
        options.key_types = [ours, *(each for each in options.key_types if each != ours)]
        with phase("key exchange"):
            transport.start_client(timeout=left())
        shown = transport.get_remote_server_key()
        if shown != host_key:
            raise paramiko.BadHostKeyException("guest", shown, host_key)  # noqa: TRY301  (the handler below closes the socket)
        transport.auth_timeout = left()
        with phase("authentication"):
            transport.auth_publickey(user, keys.login.paramiko())
        if not transport.is_authenticated():
            raise paramiko.AuthenticationException("the guest requires more than the key")  # noqa: TRY301
    except BaseException:
        transport.close()
        sock.close()
        raise
    return Connection(transport)


def dial(address: str, timeout: float, port: int = PORT) -> socket.socket:
    """Open a TCP connection to the SSH port of `address`, or to another port."""
    sock = close_in_child(socket.create_connection((address, port), timeout))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Reset the connection when it is closed. Otherwise the kernel keeps looking for the MAC address of a VM that has
    # ended, and delays the packets to the next VM at that address by up to a second.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def _drain(channel: paramiko.Channel, stdout: Callable[[bytes], object], stderr: Callable[[bytes], object]) -> bool:
    """Pass on one piece of data of each stream; return whether there was any.

    Passing on everything might never end if the data arrives faster than it is processed.
    """
    drained = False
    if channel.recv_ready():
        stdout(channel.recv(_CHUNK_BYTES))
        drained = True
    if channel.recv_stderr_ready():
        stderr(channel.recv_stderr(_CHUNK_BYTES))
        drained = True
    return drained


def feed(channel: paramiko.Channel, source: IO[bytes]) -> None:
    """Copy a file to the input of a command, until its end or that of the command."""
    # A command may end, or the connection break, before it has read everything; `execute` notices that itself. Then
    # the source may be closed, which is a ValueError here.
    with contextlib.suppress(OSError, ValueError, paramiko.SSHException):
        channel.settimeout(None)
        while data := source.read(_CHUNK_BYTES):
            channel.sendall(data)
        channel.shutdown_write()
