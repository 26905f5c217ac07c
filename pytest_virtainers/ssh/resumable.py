"""Resumable SSH sessions: a session that is open when a VM is saved, and resumed in its clones.

A login takes the longest part of a clone's start: the guest runs, and under emulation translates, hundreds of
thousands of instructions of sshd, PAM and logind for the first time. So the login happens before the VM is saved,
with an ordinary sshd of the guest over a virtio-serial port, as network connections end with the container. Both ends
then exchange new keys. In strict mode this resets the sequence numbers (OpenSSH's PROTOCOL, 1.10), so that these keys
are all that the client needs in a clone.

The session belongs to the template like its login key, and gives the same access. A snapshot saves the session in the
same way; both ends continue until it is restored.
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
from pytest_virtainers.support.interruptible import TimedOut, run_interruptible
from pytest_virtainers.support.runtime_modules import protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import ReadableBuffer as Buffer

COMMAND = ["line"]
"""The command of the runtime image that connects its stdin and stdout to the serial port."""

_LEADER = "/run/virtainer-line.pid"
# It leaves the cgroup of the login, which would end it; sshd's login moves it to a session's cgroup.
# Fails if there is no such port or no sshd.
#
# Two processes copy between the port and sshd. sshd itself would poll the port twice, for reading and for writing,
# and Linux (drivers/char/virtio_console.c) accepts a message that arrives in between during the second poll, which
# ignores it. The interrupt then finds nothing new and wakes no process until the next message. When sshd has ended
# and its output is copied, the process that still reads is killed, which closes the port.
#
# A VM restored from a template has the session of that template. A new login replaces it, as groups, limits and
# environment may have changed. Without the copying process, its sshd ends as after a disconnect.
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
    """This session cannot be resumed; the message is the reason."""


@dataclass(frozen=True)
class Session:
    """The state of a session's client just after a key exchange.

    Attributes:
        keys: derived keys and initial vectors by their letters (RFC 4253, 7.2), in hex.
        facts: the negotiated algorithms and versions, and the session ID.
    """

    keys: Mapping[str, str]
    facts: Mapping[str, str]


class Recording(paramiko.Transport):
    """A client that remembers its keys, and its channels, of which paramiko keeps only weak references."""

    def __init__(self, sock: Any, **options: Any) -> None:
        super().__init__(sock, **options)
        self.derived: dict[str, bytes] = {}
        self._kept: list[paramiko.Channel] = []
        self._keeping = threading.Lock()

    @property
    def _open(self) -> list[paramiko.Channel]:
        """The channels that the server has not closed yet."""
        ours: Any = self
        return list(ours._channels.values())

    def open_channel(self, *args: Any, **options: Any) -> paramiko.Channel:
        """Open a channel, and keep a reference until the server closes it."""
        channel = super().open_channel(*args, **options)
        with self._keeping:
            self._kept = [*self._open, channel]
        return channel

    @property
    def at_rest(self) -> bool:
        """Whether nothing was sent or received since the last key exchange, by the counters of strict mode."""
        ours: Any = self.packetizer
        return bool(ours._Packetizer__sequence_number_out == ours._Packetizer__sequence_number_in == 0)

    def wait_until_unused(self, deadline: float) -> None:
        """Wait until the server has closed all channels, as a resumed session would not know them."""
        while self._open:
            if not all(each.closed for each in self._open):
                raise Unsuitable("a command is still running in the session")
            if time.monotonic() > deadline or not self.is_active():
                raise TimedOut
            time.sleep(_POLL_SECONDS)

    def _compute_key(self, id: str, nbytes: int) -> bytes:  # noqa: A002  (paramiko's name)
        key: bytes = super()._compute_key(id, nbytes)  # type: ignore[misc]
        self.derived[id] = key
        return key


def freeze(connection: client.Connection, seconds: float) -> Session:
    """Exchange keys and return the state to resume from; until the VM is saved, nothing may be sent.

    Raises:
        Unsuitable: the session does not use the serial port, a command is running in it, the guest's sshd has no
            strict mode (it is older than 9.6, or not OpenSSH), or the key exchange took longer than `seconds`.
        paramiko.SSHException, OSError, EOFError: the connection broke.
    """
    transport = connection.transport
    if not isinstance(transport, Recording):
        raise Unsuitable("the session does not use the serial port")
    ours: Any = transport
    if not ours.agreed_on_strict_kex:
        raise Unsuitable("the guest's sshd does not support strict key exchange")
    deadline = time.monotonic() + seconds
    try:
        transport.wait_until_unused(deadline)
        run_interruptible(connection.change_keys, check=lambda: None, deadline=deadline)
    except TimedOut:
        raise Unsuitable(f"the guest's sshd did not exchange keys within {seconds:g} s") from None
    facts = {name: str(getattr(ours, name)) for name in (*_AGREED, *_VERSIONS)}
    keys = {letter: key.hex() for letter, key in transport.derived.items()}
    return Session(keys, {**facts, "session_id": ours.session_id.hex()})


class _Quiet(Packetizer):
    """A packetizer that omits the first line of a connection, the client's version, which was sent long ago."""

    _greeted = False

    def write_all(self, out: Buffer) -> None:
        if self._greeted:
            super().write_all(out)
        self._greeted = True

    def start_handshake(self, timeout: float) -> None:
        """Do nothing."""


class _Continued(Recording):
    """A client that starts in the middle of a session."""

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
        self._given = {}  # the next keys come from an exchange
        ours.initial_kex_done = ours.packetizer._initial_kex_done = True
        ours.auth_handler = AuthHandler(self)
        ours.auth_handler.authenticated = ours.authenticated = True

    def begin(self) -> None:
        """Start reading and writing."""
        self.active = True
        self.start()

    def _compute_key(self, id: str, nbytes: int) -> bytes:  # noqa: A002  (paramiko's name)
        return self._given[id][:nbytes] if self._given else super()._compute_key(id, nbytes)

    # Skip what `run` does at the start of a session; its last step is to expect the server's KEXINIT.

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
            self.clear_to_send.set()  # other threads wait for this


def resume(sock: Any, session: Session) -> client.Connection:
    """Resume the session in a clone; `sock` is connected to its serial port. It may still turn out not to answer.

    Raises:
        Unsuitable: this paramiko lacks an algorithm of the session; `sock` is closed.
    """
    try:
        transport = _Continued(sock, session)
    except KeyError as missing:
        sock.close()
        raise Unsuitable(f"this paramiko does not support {missing}") from missing
    transport.set_log_channel(client.LOG_CHANNEL)
    transport.begin()
    return client.Connection(transport)
