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

from pytest_virtainers.errors import SSHError
from pytest_virtainers.support.forks import close_in_child, disown_in_child, silence
from pytest_virtainers.support.interruptible import POLL_SECONDS, TimedOut, patiently
from pytest_virtainers.support.timings import phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from pytest_virtainers.ssh.keys import Keys

PORT = 22
_CHUNK_BYTES = 256 * 1024
# When a command has ended but its streams have not: how long they may be silent, and how long they may go on.
_LINGER_SECONDS, _AFTERMATH_SECONDS = 1.0, 5.0
_HANG_UP_SECONDS = 2.0
_MOMENT_SECONDS = 0.1
_BROKEN = "the SSH connection broke while {!r} ran"
_WINDOW_BYTES = 16 * 1024 * 1024

# paramiko reports every failed attempt with a traceback. What matters of it is in our own errors.
LOG_CHANNEL = "pytest_virtainers.paramiko"
# By its level, because pytest also listens to loggers that do not propagate.
logging.getLogger(LOG_CHANNEL).setLevel(logging.CRITICAL + 1)

FAILURES = (paramiko.SSHException, OSError, EOFError)
"""What paramiko raises when the guest cannot be reached."""


class Connection:
    """A logged-in SSH connection.

    Attributes:
        transport: paramiko's, for what this class does not do.
        astray: why it leads nowhere; empty as long as nothing of that kind is known.
    """

    def __init__(self, transport: paramiko.Transport) -> None:
        self.transport = transport
        self.astray = ""
        self._ahead: list[paramiko.Channel] = []
        self._asking = threading.Lock()
        disown_in_child(self)

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as this side knows."""
        return self.transport.is_active()

    @property
    def peer(self) -> str:
        """The address to which it leads; empty when it goes through the engine, or is over."""
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
        """Run `command` in the guest's shell; give its exit code, -1 when a signal ended it.

        Both streams are drained as they come (reading one to its end first deadlocks once the other has filled
        its window). When the command has ended but a process it left behind holds the streams open, they are
        given one more second of silence, and five in all once what had come by then is passed on.

        Args:
            command: for the login shell of the user.
            stdin: read to its end and written to the command's standard input.
            stdout: called with each piece of standard output.
            stderr: called with each piece of standard error.
            deadline: on `time.monotonic()`; holds even when the guest no longer answers.
            check: called four times a second; raises when there is no point in waiting on.
            started: called when the guest has said that it runs the command.

        Raises:
            TimedOut: the deadline passed.
            SSHError: the connection broke.
        """
        __tracebackhide__ = True
        with phase("open channel"):
            channel = self._open(command, deadline, check)
        started()
        if stdin is None:
            channel.shutdown_write()
        else:
            threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
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
        if code == -1:  # of a command that a signal ended, and of each one whose connection does
            self.transport.join(_MOMENT_SECONDS)
            if not self.alive:
                raise SSHError(_BROKEN.format(command))
        return code

    def _open(self, command: str, deadline: float | None, check: Callable[[], None]) -> paramiko.Channel:
        __tracebackhide__ = True

        def start() -> paramiko.Channel:
            try:  # in one step: other threads start commands, too
                channel = self._ahead.pop()
            except IndexError:
                channel = self._open_channel()
            channel.exec_command(command)
            return channel

        try:
            # Of the two steps, paramiko limits the time of the first only.
            return patiently(start, check=check, deadline=deadline, unwanted=self._hang_up)
        except FAILURES as error:
            raise SSHError(f"{command!r} could not be started over SSH: {error or type(error).__name__}") from error

    def _open_channel(self) -> paramiko.Channel:
        return self.transport.open_session(window_size=_WINDOW_BYTES)

    def open_ahead(self, seconds: float) -> bool:
        """Open the next command's channel now; tell whether the guest's side did so within so many seconds."""
        try:
            channel = patiently(self._open_channel, check=lambda: None, deadline=time.monotonic() + seconds)
        except (*FAILURES, TimedOut):
            return False
        self._ahead.append(channel)
        return True

    def close_ahead(self) -> None:
        """Close the channel that `open_ahead` has opened, if nobody has used it."""
        while self._ahead:
            self._ahead.pop().close()

    def _hang_up(self, channel: paramiko.Channel) -> None:
        """Close a channel on which something may be stuck: then the connection goes, too."""
        closing = threading.Thread(target=channel.close, daemon=True)
        closing.start()
        closing.join(_HANG_UP_SECONDS)
        if closing.is_alive():
            self.close()

    def answers(self, seconds: float) -> bool:
        """Tell whether the guest's side answers within so many seconds."""
        try:
            # Whatever sshd knows of this request, it has to answer.
            patiently(
                lambda: self.request("keepalive@openssh.com"),
                check=lambda: None,
                deadline=time.monotonic() + seconds,
            )
        except (*FAILURES, TimedOut):
            return False
        return self.alive

    def request(self, kind: str, data: tuple[str, int] | None = None) -> None:
        """Make a global request and wait for its answer, however long that takes."""
        with self._asking:  # paramiko takes any answer for that to the request which was made last
            self.transport.global_request(kind, data, wait=True)

    def change_keys(self) -> None:
        """Agree with the server on new keys; waits as `request` does."""
        with self._asking:  # an answer to something else would look like the end of this, too
            # A channel counts as closed before paramiko's thread has answered that. Were keys changed in between, the
            # answer would wait for the new ones, and they for that thread, which alone can read them.
            self.transport.global_request("keepalive@openssh.com", wait=True)
            self.transport.renegotiate_keys()

    def listen(self, port: int, arrived: Callable[[paramiko.Channel, Any, Any], object]) -> int:
        """Have the guest's sshd listen on a port of its localhost; give the port. Waits as `request` does."""
        with self._asking:
            given: int = self.transport.request_port_forward("127.0.0.1", port, arrived)
        return given

    def disown(self) -> None:
        """Leave the session to a forked child's parent."""
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
        paramiko.BadHostKeyException: the guest's host key is not the one that was given to it.
        paramiko.SSHException, OSError, EOFError: anything else that went wrong (`FAILURES`).
    """
    transport = kind(sock)
    transport.set_log_channel(LOG_CHANNEL)
    deadline = time.monotonic() + timeout

    def left() -> float:
        return max(0.1, deadline - time.monotonic())

    try:
        host_key, transport.banner_timeout = keys.host.public_key(), timeout
        # Ours first: of several host keys the guest has to show the one that it was given.
        options, ours = transport.get_security_options(), host_key.get_name()
        options.key_types = [ours, *(each for each in options.key_types if each != ours)]
        with phase("key exchange"):
            transport.start_client(timeout=left())
        shown = transport.get_remote_server_key()
        if shown != host_key:
            raise paramiko.BadHostKeyException("guest", shown, host_key)  # noqa: TRY301  (the sock is ours to close)
        transport.auth_timeout = left()
        with phase("authentication"):
            transport.auth_publickey(user, keys.login.paramiko())
        if not transport.is_authenticated():
            raise paramiko.AuthenticationException("the key alone does not let us log in")  # noqa: TRY301
    except BaseException:
        transport.close()
        sock.close()
        raise
    return Connection(transport)


def dial(address: str, timeout: float, port: int = PORT) -> socket.socket:
    """Open a TCP connection to the SSH port of `address`, or to another one."""
    sock = close_in_child(socket.create_connection((address, port), timeout))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Closed, it is gone at once. Else our kernel would go on asking for a VM that has ended, and in the meantime keep
    # the packets to the next VM at that address waiting: up to a second.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def _drain(channel: paramiko.Channel, stdout: Callable[[bytes], object], stderr: Callable[[bytes], object]) -> bool:
    """Pass on a piece of what has arrived in each stream; tell whether there was anything.

    Not all of it: who takes it more slowly than it comes would never look up.
    """
    drained = False
    if channel.recv_ready():
        stdout(channel.recv(_CHUNK_BYTES))
        drained = True
    if channel.recv_stderr_ready():
        stderr(channel.recv_stderr(_CHUNK_BYTES))
        drained = True
    return drained


def _feed(channel: paramiko.Channel, source: IO[bytes]) -> None:
    # A command may end, or the connection break, before it has read everything; `execute` sees that itself. Who has
    # opened the source may then close it: a ValueError here.
    with contextlib.suppress(OSError, ValueError, paramiko.SSHException):
        channel.settimeout(None)
        while data := source.read(_CHUNK_BYTES):
            channel.sendall(data)
        channel.shutdown_write()
