"""The serial console: one stream from the guest to a log file, to stdout, and to whoever is connected.

Each reader has a thread of its own, so that nobody waits for another: the guest and the log never wait for
stdout, whose reader may stall (the log file is its buffer); a client that does not read loses output.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 65536


class Console:
    """Shares one serial line. `line` is our end of a socket pair, QEMU has the other."""

    def __init__(self, line: socket.socket, log: Path, server: socket.socket, stdout: int) -> None:
        self._line, self._server, self._stdout = line, server, stdout
        self._log_path = log
        self._log = log.open("wb", buffering=0)
        self._clients: set[socket.socket] = set()
        self._written = threading.Condition()
        self._length = 0
        self._ended = False
        self._copier = self._thread(self._copy_to_stdout)
        self._thread(self._read_line)
        self._thread(self._accept)

    def finish(self, seconds: float) -> None:
        """Once QEMU is gone: give stdout this long to take what is left."""
        self._copier.join(seconds)

    def _read_line(self) -> None:
        while data := _receive(self._line):
            with contextlib.suppress(OSError):  # a full disk costs the log, not the VM
                written = self._log.write(data) or 0
                with self._written:
                    self._length += written
                    self._written.notify()
            for client in tuple(self._clients):
                try:
                    client.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    continue
                except OSError:
                    self._clients.discard(client)
                    client.close()
        with self._written:
            self._ended = True
            self._written.notify()

    def _copy_to_stdout(self) -> None:
        with self._log_path.open("rb", buffering=0) as log, contextlib.suppress(OSError):
            position = 0
            while True:
                with self._written:
                    while position == self._length:
                        if self._ended:
                            return
                        self._written.wait()
                data = log.read(_CHUNK)
                position += len(data)
                while data:
                    data = data[os.write(self._stdout, data) :]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the server is closed
            while True:
                client, _ = self._server.accept()
                self._clients.add(client)
                self._thread(self._type, client)

    def _type(self, client: socket.socket) -> None:
        """Pass a client's keys on; one that stops typing may still read."""
        with contextlib.suppress(OSError):
            while keys := _receive(client):
                self._line.sendall(keys)

    @staticmethod
    def _thread(target: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        thread.start()
        return thread


def _receive(connection: socket.socket) -> bytes:
    """Like recv, with a reset connection as an ended one."""
    try:
        return connection.recv(_CHUNK)
    except OSError:
        return b""
