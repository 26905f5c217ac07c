"""An SSH session over a virtio-serial port, which survives when the VM is saved and restored.

`docker exec -i CONTAINER line` connects stdin and stdout to it. A clone's container also listens on a TCP port, only
for its engine's host, which is faster than starting a program. All other traffic to that port goes to the guest.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_CHUNK_BYTES = 65536


class SSHSerial:
    """Connects one caller at a time to the guest's port.

    Args:
        guest: our end of the port.
        server: a listening socket for callers.
        kept: whether to keep the session open when a caller hangs up, so that another one can resume it.

    Attributes:
        caller: the connected caller; `None` without one.
    """

    def __init__(self, guest: socket.socket, server: socket.socket, *, kept: bool) -> None:
        self._guest, self._kept, self._stale = guest, kept, False
        self._one_at_a_time = threading.Lock()
        self.caller: socket.socket | None = None
        self._changed = threading.Condition()
        self.listen(server)
        threading.Thread(target=self._pass_on, daemon=True).start()

    def listen(self, server: socket.socket, hosts: Iterable[str] | None = None) -> None:
        """Accept callers at `server` as well; with `hosts`, only from those addresses."""
        allowed = None if hosts is None else frozenset(hosts)
        threading.Thread(target=self._accept, args=(server, allowed), daemon=True).start()

    def after_snapshot(self, action: str, _name: str) -> None:
        """Keep the session open from now on: callers may resume it after `save` or `load` of a snapshot.

        Output of the guest from before a `load` that no caller has read is dropped.
        """
        with self._changed:
            self._kept = True
            self._stale = self._stale or action == "load"
            self._changed.notify()

    def hang_up(self) -> None:
        """End the caller's connection: the guest has closed its end, which the port does not show."""
        with self._changed:
            if self.caller is not None:
                with contextlib.suppress(OSError):
                    self.caller.shutdown(socket.SHUT_RDWR)

    def _accept(self, server: socket.socket, allowed: frozenset[str] | None) -> None:
        with contextlib.suppress(OSError):  # the server is closed
            while True:
                caller, address = server.accept()
                if server.family == socket.AF_INET:  # SSH's messages are short
                    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if allowed is None or address[0] in allowed:
                    threading.Thread(target=self._serve, args=(caller,), daemon=True).start()
                else:
                    caller.close()

    def _serve(self, caller: socket.socket) -> None:
        with self._one_at_a_time, caller, contextlib.suppress(OSError):
            with self._changed:
                self.caller, self._stale = caller, False
                self._changed.notify()
            with contextlib.suppress(OSError):
                while data := caller.recv(_CHUNK_BYTES):
                    self._guest.sendall(data)
            with self._changed:
                self.caller = None
            if not self._kept:
                self._guest.shutdown(socket.SHUT_RDWR)

    def _pass_on(self) -> None:
        """Pass on the guest's output, when there is a caller."""
        with contextlib.suppress(OSError):
            while data := self._guest.recv(_CHUNK_BYTES):
                with self._changed:
                    self._changed.wait_for(lambda: self.caller is not None or self._stale)
                    caller = self.caller
                if caller is not None:
                    with contextlib.suppress(OSError):
                        caller.sendall(data)
        self.hang_up()
