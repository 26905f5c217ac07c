"""The serial console: one stream from the guest to a log file, to stdout, and to all connected clients.

Each reader has its thread, so that none waits for another: the guest and the log never wait for stdout, whose reader
may stall, nor for a client. A reader that stalls loses output: on stdout the oldest, and a line says how much. The
log keeps the newest output, in two files.
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
_MIB = 2**20
_WAITING = 4 * _MIB  # of output that waits for stdout; of more, the older half is dropped
_LOG_SIZE = 16 * _MIB


class Console:
    """Shares one serial line.

    Args:
        line: our end of a socket pair; QEMU has the other end.
        log: the path of the log.
        server: a listening socket for clients.
        stdout: a descriptor that gets the output, too.

    Attributes:
        log: the open log.
        clients: connected sockets.
    """

    def __init__(self, line: socket.socket, log: Path, server: socket.socket, stdout: int) -> None:
        self._line, self._server, self._stdout = line, server, stdout
        self.log = _Log(log)
        self.clients: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._waiting, self._lost = bytearray(), 0
        self._ended = False
        self._copier = self._thread(self._copy_to_stdout)
        self._thread(self._read_line)
        self._thread(self._accept)

    def finish(self, seconds: float) -> None:
        """Wait after QEMU's end, for so many seconds, until stdout has accepted the rest."""
        self._copier.join(seconds)

    def _read_line(self) -> None:
        while data := _receive(self._line):
            self.log.write(data)
            with self._changed:
                self._waiting += data
                if len(self._waiting) > _WAITING:
                    excess = len(self._waiting) - _WAITING // 2
                    del self._waiting[:excess]
                    self._lost += excess
                self._changed.notify()
            for client in tuple(self.clients):
                try:
                    client.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    continue
                except OSError:
                    self.clients.discard(client)
                    client.close()
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _copy_to_stdout(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._next():
                while data:
                    data = data[os.write(self._stdout, data) :]

    def _next(self) -> bytes:
        """Wait for the next piece for stdout, and return it; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            lost, self._lost = self._lost, 0
            data = bytes(self._waiting[:_CHUNK])
            del self._waiting[:_CHUNK]
        return b"\r\n[... %d bytes of the console were lost here ...]\r\n%b" % (lost, data) if lost else data

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the server is closed
            while True:
                client, _ = self._server.accept()
                self.clients.add(client)
                self._thread(self._type, client)

    def _type(self, client: socket.socket) -> None:
        """Pass on a client's input; a client that ends its input may still read."""
        with contextlib.suppress(OSError):
            while keys := _receive(client):
                self._line.sendall(keys)

    @staticmethod
    def _thread(target: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        thread.start()
        return thread


class _Log:
    """A file that is renamed to `NAME.1` when it is large, and replaces the previous one."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, 0
        self._file = path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Add to the log; a full disk costs the log, not the VM."""
        with contextlib.suppress(OSError):
            if self._size >= _LOG_SIZE:
                with contextlib.suppress(FileNotFoundError):  # the last try could not make a new one
                    self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                new = self._path.open("wb", buffering=0)
                self.close()
                self._file, self._size = new, 0
            self._size += self._file.write(data) or 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _receive(connection: socket.socket) -> bytes:
    """Receive like `recv`, but return nothing for a connection that was reset."""
    try:
        return connection.recv(_CHUNK)
    except OSError:
        return b""
