"""Tell the helper that waits in the guest of a clone who this clone is, and what time it is.

The helper was started in the guest before it was saved, as a template or in a snapshot. It listens on a virtio-serial
port, on which both sides speak in lines: `ready` says the helper when it waits; when the guest goes on, it is told
`HOSTNAME ENTROPY` (hexadecimal); once it has done what takes long, it asks `time?` and is told the seconds since
1970; at last it says `done HOSTNAME TIME`, with the guest's clock. What comes from the guest is answered or shown,
and otherwise not acted upon.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from typing import TYPE_CHECKING

from virtainer.ending import say

if TYPE_CHECKING:
    import socket

PORT = "org.virtainers.clone"
READY, ASKS_FOR_TIME = b"ready\n", b"time?\n"
_ENTROPY_BYTES = 64
_LONGEST_LINE = 4096


class Individual:
    """Our end of the port."""

    def __init__(self, connection: socket.socket, hostname: str) -> None:
        self._connection, self._hostname = connection, hostname
        self._waits = False  # has a helper said that it is ready, and not been told yet?
        self._snapshots: set[str] = set()  # those in which one waits
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self) -> None:
        """Say to the helper what a clone has to know."""
        self._waits = False
        self._send(f"{self._hostname} {os.urandom(_ENTROPY_BYTES).hex()}")

    def after_snapshot(self, action: str, name: str) -> None:
        """Tell the helper, if there is one, when the guest goes on after `save` or `load` of a snapshot."""
        if action == "save":
            (self._snapshots.add if self._waits else self._snapshots.discard)(name)
        if name in self._snapshots:
            self.tell()

    def _send(self, line: str) -> None:
        with contextlib.suppress(OSError):  # QEMU is gone
            self._connection.sendall(line.encode() + b"\n")

    def _listen(self) -> None:
        with self._connection.makefile("rb") as lines:
            while line := lines.readline(_LONGEST_LINE):
                if line == ASKS_FOR_TIME:
                    self._send(f"{time.time():.6f}")
                else:
                    self._waits = self._waits or line == READY
                    say(f"helper: {heard(line, time.time())}")


def heard(line: bytes, now: float) -> str:
    """Put into words what the helper said at `now` (seconds since 1970)."""
    match line.split():
        case [b"ready"]:
            return "ready"
        case [b"done", hostname, clock] if re.fullmatch(rb"\d{1,12}\.\d{6}", clock):
            late_ms = (float(clock) - now) * 1000
            return f"individual, hostname {hostname.decode(errors='replace')}, clock {late_ms:+.1f} ms"
        case _:
            return f"something unexpected: {line[:100]!r}"
