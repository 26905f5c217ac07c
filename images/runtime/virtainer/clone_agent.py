"""The supervisor's end of the port to the helper in the guest: a clone's name, entropy, and the time.

The plugin started the helper (`pytest_virtainers/vm/clone_helper.py`) before it saved the guest, as a template or in
a snapshot. Both sides write lines to a virtio-serial port:

* The helper writes `ready` when it starts to wait, and as the answer to an empty line.
* When the guest resumes, the supervisor writes `HOSTNAME ENTROPY` (hexadecimal).
* After the slow part of its work the helper writes `time?`, and gets the seconds since 1970.
* At last it writes `done HOSTNAME TIME`, with the guest's clock, and waits again.

Lines of the guest are answered or shown. They determine only whether a helper waits.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtainer.events import RateLimit
from virtainer.protocol import CLONE_DEVICE

if TYPE_CHECKING:
    from virtainer import qmp

WAITS = Path("/run/virtainer/helper-waits")
"""Exists from when a helper has written that it waits until it gets an order."""
READY, ASKS_FOR_TIME = b"ready\n", b"time?\n"
_ENTROPY_BYTES = 64
_LONGEST_LINE = 4096
_UNEXPECTED, _SHOWN_BYTES = "helper-unexpected", 100


class CloneAgent:
    """Answers the helper, and reports its lines.

    Args:
        connection: our end of the port.
        hostname: the name of the clone.
        waits: the file that `WAITS` describes.
    """

    def __init__(self, connection: socket.socket, hostname: str, waits: Path = WAITS) -> None:
        self._connection, self._hostname, self._waits = connection, hostname, waits
        self._snapshots: set[str] = set()  # those with a helper that waits
        # A test may restore a snapshot again and again; unexpected lines are never useful.
        self._lines = RateLimit("helper", at_once=50, a_second=10)
        self._unexpected = RateLimit("helper: unexpected", at_once=20, a_second=0)
        waits.unlink(missing_ok=True)  # from before the container was restarted
        threading.Thread(target=self._listen, daemon=True).start()

    def after_restore(self, *, clone: bool) -> None:
        """Order the helper to work if the guest resumes as a clone; otherwise only ask whether there is one."""
        if clone:
            self._order()
        else:
            self._send("")

    def after_snapshot(self, action: str, name: str) -> None:
        """Order the helper, if there is one, to work when the guest resumes after `save` or `load` of a snapshot."""
        if action == "save":
            (self._snapshots.add if self._waits.exists() else self._snapshots.discard)(name)
        if name in self._snapshots:
            self._order()

    def _order(self) -> None:
        self._waits.unlink(missing_ok=True)
        self._send(f"{self._hostname} {os.urandom(_ENTROPY_BYTES).hex()}")

    def _send(self, line: str) -> None:
        # QEMU has ended; or the guest does not read, and the supervisor must not wait for it.
        with contextlib.suppress(OSError):
            self._connection.send(line.encode() + b"\n", socket.MSG_DONTWAIT)

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._connection.makefile("rb") as lines:  # QEMU has ended
            while line := lines.readline(_LONGEST_LINE):
                if line == ASKS_FOR_TIME:
                    self._send(f"{time.time():.6f}")
                    continue
                event, fields = parse(line, time.time())
                if event == _UNEXPECTED:
                    self._unexpected.report(event, **fields)
                else:
                    self._waits.touch()
                    self._lines.report(event, **fields)


def waits(monitor: qmp.Monitor) -> bool:
    """Return whether a helper waits, and neither it nor the guest has ended since.

    Raises:
        qmp.Refused, EOFError: QEMU does not answer.
    """
    is_open = {each["label"]: each["frontend-open"] for each in monitor.ask("query-chardev")}
    return is_open.get(CLONE_DEVICE, False) and WAITS.exists()


def parse(line: bytes, now: float) -> tuple[str, dict[str, Any]]:
    """Return the event, and its fields, for a line that the helper wrote at `now` (seconds since 1970)."""
    match line.split():
        case [b"ready"]:
            return "helper-ready", {}
        case [b"done", hostname, clock] if re.fullmatch(rb"\d{1,12}\.\d{6}", clock):
            late_ms = (float(clock) - now) * 1000
            return "helper-done", {"hostname": hostname.decode(errors="backslashreplace"), "clock_ms": late_ms}
        case _:
            return _UNEXPECTED, {"line": line.removesuffix(b"\n")[:_SHOWN_BYTES].decode(errors="backslashreplace")}
