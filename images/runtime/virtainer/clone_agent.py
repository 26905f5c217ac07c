"""Tell the helper that waits in the guest of a clone who this clone is, and what time it is.

The helper was started in the guest before it was saved, as a template or in a snapshot. It listens on a virtio-serial
port, on which both sides speak in lines: `ready` says the helper when it starts to wait, and to an empty line; when
the guest goes on, it is told `HOSTNAME ENTROPY` (hexadecimal); once it has done what takes long, it asks `time?` and
is told the seconds since 1970; at last it says `done HOSTNAME TIME`, with the guest's clock, and waits again. What
comes from the guest is answered or shown; beside that, all that it decides is whether a helper waits.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from virtainer.exit_reasons import Sparing

if TYPE_CHECKING:
    from virtainer import qmp

PORT = "org.virtainers.clone"
CHARDEV = "port"  # QEMU's name of it
WAITS = Path("/run/virtainer/helper-waits")
"""It is there since a helper has said that it waits, until it is told."""
READY, ASKS_FOR_TIME = b"ready\n", b"time?\n"
_ENTROPY_BYTES = 64
_LONGEST_LINE = 4096
_UNEXPECTED = "something unexpected"


class CloneAgent:
    """Our end of the port."""

    def __init__(self, connection: socket.socket, hostname: str, waits: Path = WAITS) -> None:
        self._connection, self._hostname, self._waits = connection, hostname, waits
        self._snapshots: set[str] = set()  # those in which one waits
        # A test may go back to a snapshot again and again; nonsense is nonsense.
        self._lines = Sparing("helper", at_once=50, a_second=10)
        self._nonsense = Sparing(f"helper: {_UNEXPECTED}", at_once=20, a_second=0)
        waits.unlink(missing_ok=True)  # left over when a container is started again
        threading.Thread(target=self._listen, daemon=True).start()

    def after_restore(self, *, clone: bool) -> None:
        """The guest is about to go on: as a clone, or as the machine that it was, which keeps its clock."""
        if clone:
            self._tell()
        else:
            self._send("")  # a helper, if there is one, says that it waits

    def after_snapshot(self, action: str, name: str) -> None:
        """Tell the helper, if there is one, when the guest goes on after `save` or `load` of a snapshot."""
        if action == "save":
            (self._snapshots.add if self._waits.exists() else self._snapshots.discard)(name)
        if name in self._snapshots:
            self._tell()

    def _tell(self) -> None:
        self._waits.unlink(missing_ok=True)
        self._send(f"{self._hostname} {os.urandom(_ENTROPY_BYTES).hex()}")

    def _send(self, line: str) -> None:
        # QEMU is gone; or the guest does not read what it is told, for which nobody here waits.
        with contextlib.suppress(OSError):
            self._connection.send(line.encode() + b"\n", socket.MSG_DONTWAIT)

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._connection.makefile("rb") as lines:  # QEMU is gone
            while line := lines.readline(_LONGEST_LINE):
                if line == ASKS_FOR_TIME:
                    self._send(f"{time.time():.6f}")
                else:
                    words = heard(line, time.time())
                    if words.startswith(_UNEXPECTED):
                        self._nonsense.say(f"helper: {words}")
                    else:
                        self._waits.touch()
                        self._lines.say(f"helper: {words}")


def waits(monitor: qmp.Monitor) -> bool:
    """Tell whether a helper waits, and has not been ended since, or by a reboot. Raises qmp.Refused, EOFError."""
    is_open = {each["label"]: each["frontend-open"] for each in monitor.ask("query-chardev")}
    return is_open.get(CHARDEV, False) and WAITS.exists()


def heard(line: bytes, now: float) -> str:
    """Put into words what the helper said at `now` (seconds since 1970)."""
    match line.split():
        case [b"ready"]:
            return "ready"
        case [b"done", hostname, clock] if re.fullmatch(rb"\d{1,12}\.\d{6}", clock):
            late_ms = (float(clock) - now) * 1000
            return f"individual, hostname {hostname.decode(errors='backslashreplace')}, clock {late_ms:+.1f} ms"
        case _:
            return f"{_UNEXPECTED}: {line[:100]!r}"
