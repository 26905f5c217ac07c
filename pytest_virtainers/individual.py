"""Make a machine that went back in time catch up: its clock, its random numbers and, in a clone, its name.

A template's guest is left with a helper (`clone_helper.py`) that does so as soon as a clone runs, with the supervisor
at the other end. After an in-place restore the same helper is run over SSH, with us at the other end.
"""

from __future__ import annotations

import os
import queue
import shlex
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from pytest_virtainers import clone_helper, shell
from pytest_virtainers.errors import BootError, Unclonable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers import ssh
    from pytest_virtainers.keys import KeyPair
    from pytest_virtainers.vm import VM

READY, DONE = b"helper: ready", b"helper: individual"
"""What the supervisor says when the helper has said so (`images/runtime/virtainer/individual.py`)."""

_PORT = "org.virtainers.clone"
_PATH = "/run/virtainer-clone.py"
_ENTROPY_BYTES = 64
_RENEW = """
set -e
umask 077
cat >/etc/ssh/virtainers-new
rm -f /etc/ssh/ssh_host_*
mv /etc/ssh/virtainers-new /etc/ssh/ssh_host_ed25519_key
umask 022
echo "$PUBLIC" >/etc/ssh/ssh_host_ed25519_key.pub
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
[ -L /var/lib/dbus/machine-id ] || [ ! -e /var/lib/dbus/machine-id ] || cp /etc/machine-id /var/lib/dbus/machine-id
systemctl reload ssh 2>/dev/null || systemctl reload sshd 2>/dev/null || pkill -HUP -o -x sshd
"""
_CAN = "command -v python3 && { modprobe virtio_console || [ -d /sys/class/virtio-ports ]; }"


def leave_helper(vm: VM, hostname: str) -> None:
    """Start the helper in the guest, which is called `hostname`; raises `Unclonable` when it cannot run there."""
    __tracebackhide__ = True
    if not vm.run(_CAN, sudo=True, check=False):
        raise Unclonable("the guest has no python3, or its kernel no virtio_console")
    vm.write_text(_PATH, helper(), owner="root")
    start = shlex.join(["python3", "-I", "-S", _PATH, _PORT, hostname])
    # A unit of its own where there is systemd: what is left of a login would keep its session open.
    vm.run(
        "if command -v systemd-run >/dev/null; then set -- systemd-run --quiet --collect; else set -- setsid -f; fi; "
        f'"$@" {start}',
        sudo=True,
    )


def catch_up(connection: ssh.Connection, timeout: float, check: Callable[[], None]) -> None:
    """Set the clock to ours and reseed the kernel's generator, over SSH.

    Raises:
        BootError: the guest could not do it.
        VMGone, GuestPanic, SSHError: what `check` raises, or the connection broke.
    """
    __tracebackhide__ = True
    conversation, errors = _Conversation(), bytearray()
    command = shell.line(["python3", "-I", "-S", "-c", helper(), "-", ""], sudo=True)
    try:
        code = connection.execute(
            command,
            stdin=cast("IO[bytes]", conversation),
            stdout=conversation.hear,
            stderr=errors.extend,
            deadline=time.monotonic() + timeout,
            check=check,
        )
    finally:
        conversation.end()
    if code != 0:
        raise BootError(f"the guest did not catch up with the time: {errors.decode(errors='replace').strip()}")


def renew(vm: VM, host_key: KeyPair) -> None:
    """Give the guest a machine-id of its own, and this SSH host key as its only one, for new connections.

    What has read the machine-id before keeps the old one until it is started again: machine-id(5).

    Raises:
        CommandFailed: the guest could not do it.
    """
    __tracebackhide__ = True
    vm.run(_RENEW, input=host_key.private, env={"PUBLIC": host_key.public}, sudo=True)


class _Conversation:
    """The supervisor's part, as a file to read from: an order, and the time whenever it is asked for."""

    def __init__(self) -> None:
        self._heard = bytearray()
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        self._answers.put(f"- {os.urandom(_ENTROPY_BYTES).hex()}\n".encode())

    def hear(self, data: bytes) -> None:
        self._heard += data
        while b"\n" in self._heard:
            line, _, self._heard = self._heard.partition(b"\n")
            if line == clone_helper.ASKS_FOR_TIME.strip():
                self._answers.put(b"now")

    def end(self) -> None:
        self._answers.put(None)

    def read(self, _size: int) -> bytes:
        answer = self._answers.get()
        if answer == b"now":
            return f"{time.time():.6f}\n".encode()
        return answer or b""


def helper() -> str:
    """Give the source of the helper."""
    return Path(clone_helper.__file__).read_text()
