"""The line: an SSH session that is open while a machine is saved, so that whoever goes on from there goes on in it.

A login is the longest part of a clone's way into a test: the guest has to run, and where it is emulated to translate,
hundreds of thousands of instructions of sshd, PAM and logind for the first time. So this is done before the machine
is saved, over a virtio-serial port instead of a network (whose connections end with the container), by an ordinary
sshd of the guest. Both ends then agree on new keys. With that, in strict mode, they start counting anew (OpenSSH's
PROTOCOL, 1.10), so that those keys are all that the client's end of a clone has to know.

The session belongs to the template as its login key does: who has the one needs no other. A snapshot in place is
taken of the session in the same way; until it is restored, both ends just go on.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paramiko
from paramiko.auth_handler import AuthHandler
from paramiko.packet import Packetizer

from pytest_virtainers.ssh import client
from pytest_virtainers.support.interruptible import TimedOut, patiently
from pytest_virtainers.support.runtime import protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import ReadableBuffer as Buffer

COMMAND = ["line"]
"""The command in the runtime image that connects its stdin and stdout to the line."""

_LEADER = "/run/virtainer-line.pid"
# Out of the login's cgroup, as it would otherwise end with it; its own login moves it where sessions belong.
# Fails where there is no such port or no sshd.
#
# Not sshd itself has the port, but two that only copy. It would poll the port twice, to read and to write, and Linux
# (drivers/char/virtio_console.c) takes a message that comes in between when it is asked for the second time, where
# nobody wants to read; the interrupt then finds nothing new and wakes nobody, until the next message. When sshd has
# ended and all it said is through, the copier that still reads is ended, too: that closes the port.
#
# A machine that was restored from a template has the session of that one. A new login replaces it: groups, limits and
# environment may be others by now. Without the copier that reads for it, its sshd ends as when a client hangs up.
SERVE = f"""
for each in /sys/class/virtio-ports/*; do
    [ "$(cat "$each/name")" != {protocol.SSH_PORT} ] || device=/dev/${{each##*/}}
done
sshd=$(command -v sshd || echo /usr/sbin/sshd)
[ -c "$device" ] && [ -x "$sshd" ] || exit
scope=/sys/fs/cgroup/init.scope/cgroup.procs
setsid -f sh -c '
    echo $$ >"$2"
    former=$(cat {_LEADER} 2>/dev/null)
    if [ "$former" ] && grep -qs {protocol.SSH_PORT} /proc/$former/cmdline; then
        sleep 0.2  # the one that has started us ends first
        pkill -x -P $former cat || kill -s TERM -- -$former
        tries=0
        while kill -s 0 -- -$former && [ $tries -lt 250 ]; do sleep 0.02; tries=$((tries + 1)); done
    fi
    echo $$ >{_LEADER}
    exec 3<>"$1"
    cat <&3 3<&- | {{ "$0" -i 3<&- | cat >&3; kill 0; }}
' "$sshd" "$device" $scope {protocol.SSH_PORT} <>/dev/null >&0 2>&0
"""

_AGREED = ("local_cipher", "remote_cipher", "local_mac", "remote_mac", "local_compression", "remote_compression")
_VERSIONS = ("local_version", "remote_version")
_POLL_SECONDS = 0.02


class Unsuitable(Exception):
    """This session cannot be continued; the text says why."""


@dataclass(frozen=True)
class Session:
    """What the client's end of a session has to know, just after both have changed keys.

    Attributes:
        keys: derived keys and initial vectors by their letters (RFC 4253, 7.2), as hexadecimal digits.
        facts: the algorithms and versions agreed on, and the session's id.
    """

    keys: Mapping[str, str]
    facts: Mapping[str, str]


class Recording(paramiko.Transport):
    """A client's end that remembers the keys in use, and its channels (paramiko forgets what nobody uses)."""

    def __init__(self, sock: Any, **options: Any) -> None:
        super().__init__(sock, **options)
        self.derived: dict[str, bytes] = {}
        self._kept: list[paramiko.Channel] = []
        self._keeping = threading.Lock()

    @property
    def _open(self) -> list[paramiko.Channel]:
        """The channels that the server has not closed."""
        ours: Any = self
        return list(ours._channels.values())

    def open_channel(self, *args: Any, **options: Any) -> paramiko.Channel:
        """Open a channel, and keep it as long as the server does."""
        channel = super().open_channel(*args, **options)
        with self._keeping:
            self._kept = [*self._open, channel]
        return channel

    @property
    def at_rest(self) -> bool:
        """Whether nothing was sent or received since keys were changed last: in strict mode, that is counted."""
        ours: Any = self.packetizer
        return bool(ours._Packetizer__sequence_number_out == ours._Packetizer__sequence_number_in == 0)

    def wait_until_unused(self, deadline: float) -> None:
        """Wait until the server, too, has closed all channels: later it would say so to who knows of none."""
        while self._open:
            if not all(each.closed for each in self._open):
                raise Unsuitable("a command still runs in it")
            if time.monotonic() > deadline or not self.is_active():
                raise TimedOut
            time.sleep(_POLL_SECONDS)

    def _compute_key(self, id: str, nbytes: int) -> bytes:  # noqa: A002  (paramiko's name)
        key: bytes = super()._compute_key(id, nbytes)  # type: ignore[misc]
        self.derived[id] = key
        return key


def freeze(connection: client.Connection, seconds: float) -> Session:
    """Change keys and give what it takes to go on from here; until the guest is saved, nothing may be sent.

    Raises:
        Unsuitable: the session is not on the line, or a command runs in it; or the guest's sshd does not count anew
            with new keys (it is older than 9.6, or not OpenSSH), or not within so many seconds.
        paramiko.SSHException, OSError, EOFError: the connection broke.
    """
    transport = connection.transport
    if not isinstance(transport, Recording):
        raise Unsuitable("it is not on the line")
    ours: Any = transport
    if not ours.agreed_on_strict_kex:
        raise Unsuitable("the guest's sshd does not know the strict key exchange")
    deadline = time.monotonic() + seconds
    try:
        transport.wait_until_unused(deadline)
        patiently(connection.change_keys, check=lambda: None, deadline=deadline)
    except TimedOut:
        raise Unsuitable(f"the guest's sshd did not change keys within {seconds:g} s") from None
    facts = {name: str(getattr(ours, name)) for name in (*_AGREED, *_VERSIONS)}
    keys = {letter: key.hex() for letter, key in transport.derived.items()}
    return Session(keys, {**facts, "session_id": ours.session_id.hex()})


class _Quiet(Packetizer):
    """Does not write the first line of a connection, with the client's version: it has been written long ago."""

    _greeted = False

    def write_all(self, out: Buffer) -> None:
        if self._greeted:
            super().write_all(out)
        self._greeted = True

    def start_handshake(self, timeout: float) -> None:
        """There is none."""


class _Continued(Recording):
    """A client's end that starts in the middle of a session."""

    def __init__(self, sock: Any, session: Session) -> None:
        super().__init__(sock, packetizer_class=_Quiet)
        self._handshaking = True
        self._given = {letter: bytes.fromhex(key) for letter, key in session.keys.items()}
        ours: Any = self
        for name in (*_AGREED, *_VERSIONS):
            setattr(ours, name, session.facts[name])
        ours.session_id = bytes.fromhex(session.facts["session_id"])
        ours.agreed_on_strict_kex = True
        ours._activate_inbound()
        ours._activate_outbound()
        self._given = {}  # the next keys are new ones
        ours.initial_kex_done = ours.packetizer._initial_kex_done = True
        ours.auth_handler = AuthHandler(self)
        ours.auth_handler.authenticated = ours.authenticated = True

    def go_on(self) -> None:
        """Start to read and write."""
        self.active = True
        self.start()

    def _compute_key(self, id: str, nbytes: int) -> bytes:  # noqa: A002  (paramiko's name)
        return self._given[id][:nbytes] if self._given else super()._compute_key(id, nbytes)

    # What `run` does at the start of a session is done already; the last of it is to expect the server's KEXINIT.

    def _check_banner(self) -> None:
        pass

    def _send_message(self, data: Any) -> None:
        if not self._handshaking:
            super()._send_message(data)  # type: ignore[misc]

    def _send_kex_init(self) -> None:
        if not self._handshaking:
            super()._send_kex_init()  # type: ignore[misc]

    def _expect_packet(self, *ptypes: int) -> None:
        if not self._handshaking:
            super()._expect_packet(*ptypes)  # type: ignore[misc]
        elif threading.current_thread() is self:
            self._handshaking = False
            self.clear_to_send.set()  # others have waited for that


def resume(sock: Any, session: Session) -> client.Connection:
    """Go on in a clone of the machine that was saved; `sock` is its line. Whether it answers is not known yet.

    Raises:
        Unsuitable: our paramiko lacks an algorithm that was agreed on by the one which saved it; `sock` is closed.
    """
    try:
        transport = _Continued(sock, session)
    except KeyError as lack:
        sock.close()
        raise Unsuitable(f"our paramiko does not know {lack}") from lack
    transport.set_log_channel(client.LOG_CHANNEL)
    transport.go_on()
    return client.Connection(transport)
