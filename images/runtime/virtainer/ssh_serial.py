"""The line: a virtio-serial port on which an SSH session may be open while a VM is saved, and goes on from there.

`docker exec -i CONTAINER line` joins stdin and stdout to it. A clone's container also answers on a TCP port, for its
engine's host only: that saves the start of a program. Whatever else arrives at that port goes to the guest, as ever.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "org.virtainers.line"
DEVICE = "line"  # by which QEMU's events call it
TCP_PORT = 50022
_CHUNK_BYTES = 65536


class SSHSerial:
    """Joins one caller at a time to the guest's port.

    Args:
        guest: our end of the port.
        server: where callers come.
        kept: the guest is not told when a caller hangs up, so that another one may go on.
    """

    def __init__(self, guest: socket.socket, server: socket.socket, *, kept: bool) -> None:
        self._guest, self._kept, self._stale = guest, kept, False
        self._one_at_a_time = threading.Lock()
        self._caller: socket.socket | None = None
        self._heard = threading.Condition()
        self.listen(server)
        threading.Thread(target=self._pass_on, daemon=True).start()

    def listen(self, server: socket.socket, hosts: Iterable[str] | None = None) -> None:
        """Answer to callers there, too; with `hosts`, only to those addresses."""
        allowed = None if hosts is None else frozenset(hosts)
        threading.Thread(target=self._accept, args=(server, allowed), daemon=True).start()

    def after_snapshot(self, action: str, _name: str) -> None:
        """The guest goes on after `save` or `load` of a snapshot, to whose session callers may come back.

        What it has said before a `load`, and nobody has heard, is not what the next caller expects.
        """
        with self._heard:
            self._kept = True
            self._stale = self._stale or action == "load"
            self._heard.notify()

    def hang_up(self) -> None:
        """The guest's end was closed, of which its port says nothing: end the caller's, too."""
        with self._heard:
            if self._caller is not None:
                with contextlib.suppress(OSError):
                    self._caller.shutdown(socket.SHUT_RDWR)

    def _accept(self, server: socket.socket, allowed: frozenset[str] | None) -> None:
        with contextlib.suppress(OSError):  # the server is closed
            while True:
                caller, address = server.accept()
                if server.family == socket.AF_INET:  # SSH's short messages should not wait for each other
                    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if allowed is None or address[0] in allowed:
                    threading.Thread(target=self._serve, args=(caller,), daemon=True).start()
                else:
                    caller.close()

    def _serve(self, caller: socket.socket) -> None:
        with self._one_at_a_time, caller, contextlib.suppress(OSError):
            with self._heard:
                self._caller, self._stale = caller, False
                self._heard.notify()
            with contextlib.suppress(OSError):
                while data := caller.recv(_CHUNK_BYTES):
                    self._guest.sendall(data)
            with self._heard:
                self._caller = None
            if not self._kept:
                self._guest.shutdown(socket.SHUT_RDWR)

    def _pass_on(self) -> None:
        """What the guest says waits for a caller."""
        with contextlib.suppress(OSError):
            while data := self._guest.recv(_CHUNK_BYTES):
                with self._heard:
                    self._heard.wait_for(lambda: self._caller is not None or self._stale)
                    caller = self._caller
                if caller is not None:
                    with contextlib.suppress(OSError):
                        caller.sendall(data)
        self.hang_up()
