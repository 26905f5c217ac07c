"""Byte streams from and to containers: attached streams, exec sessions and logs.

The engine multiplexes stdout and stderr of a container without a terminal into frames of an 8-byte header
(stream number, three zero bytes, payload length big-endian) and a payload:
https://docs.docker.com/reference/api/engine/version/v1.43/#tag/Container/operation/ContainerAttach
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

import requests
import urllib3

from pytest_virtainers.support.forks import close_in_child

if TYPE_CHECKING:
    from collections.abc import Iterator

STDOUT, STDERR = 1, 2

_HEADER = struct.Struct(">BxxxL")
_CHUNK_BYTES = 64 * 1024
_STDERR_BYTES = 1024  # kept of a command's stderr for error messages


class Demultiplexer:
    """Splits the engine's byte stream into `(stream number, payload)` pairs."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Add what has arrived; return the frames that are complete."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= _HEADER.size:
            stream, length = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((stream, bytes(self._buffer[_HEADER.size : end])))
            del self._buffer[:end]
        return frames


class HijackedSocket:
    """The connection after the engine has switched from HTTP to a raw stream."""

    def __init__(self, sdk_socket: Any) -> None:
        """Detach the connection from the SDK, which would not close it properly."""
        response = getattr(sdk_socket, "_response", None)
        self._socket: Any = getattr(sdk_socket, "_sock", sdk_socket)
        self._early = self._read_ahead(response)
        if type(self._socket) is socket.socket and response is not None:
            self._socket = self._socket.dup()  # TLS sockets and SSH channels cannot do that, and stay the SDK's
            response.close()
        self._response = response
        self._socket.settimeout(None)
        if isinstance(self._socket, socket.socket):  # a channel ends with its SSH session
            close_in_child(self._socket)

    def _read_ahead(self, response: Any) -> bytes:
        """Return what the HTTP client has buffered after the response's headers, which the SDK would lose."""
        buffered: Any = getattr(getattr(getattr(response, "raw", None), "_fp", None), "fp", None)
        if not hasattr(buffered, "peek"):
            return b""
        self._socket.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):  # TLS sockets raise this when nothing has arrived
            return bytes(buffered.peek())
        return b""

    def settimeout(self, seconds: float | None) -> None:
        """Limit each `recv` and `send`, in seconds."""
        self._socket.settimeout(seconds)

    def recv(self, size: int = _CHUNK_BYTES) -> bytes:
        """Read at most `size` bytes; empty at the end of the stream."""
        if self._early:
            early, self._early = self._early[:size], self._early[size:]
            return early
        return bytes(self._socket.recv(size))

    def send(self, data: bytes) -> int:
        """Write some of `data`; return how many bytes."""
        return int(self._socket.send(data))

    def close_input(self) -> None:
        """Close the writing side."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection; a thread that reads from it wakes up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.abandon()

    def abandon(self) -> None:
        """Close this process's descriptor only."""
        with contextlib.suppress(OSError):
            self._socket.close()
            if isinstance(self._socket, ssl.SSLSocket) and self._response is not None:
                self._response.raw.close()  # otherwise it would keep the socket open


class ExecStream:
    """An exec session's stdin and stdout as a socket (see `engine.base.Stream`)."""

    def __init__(self, hijacked: HijackedSocket) -> None:
        self._hijacked = hijacked
        self._frames = Demultiplexer()
        self._stdout, self._stderr = bytearray(), bytearray()
        self._closed = False  # paramiko reads this attribute of sockets

    def settimeout(self, seconds: float | None) -> None:
        """Limit each `recv` and `send`, in seconds."""
        self._hijacked.settimeout(seconds)

    def send(self, data: bytes) -> int:
        """Write some of `data` to the command's stdin."""
        return self._hijacked.send(data)

    def recv(self, size: int) -> bytes:
        """Read at most `size` bytes of the command's stdout; empty at its end."""
        self._read_on()
        taken = bytes(self._stdout[:size])
        del self._stdout[:size]
        return taken

    def wait_for_output(self) -> None:
        """Wait for the first output on stdout; raise `ConnectionError` with stderr when the command ends first."""
        if not self._read_on():
            raise ConnectionError(self._stderr.decode(errors="replace").strip() or "the command ended without output")

    def _read_on(self) -> bool:
        """Wait until there is output on stdout; return whether there is."""
        while not self._stdout:
            data = self._hijacked.recv()
            if not data:
                return False
            for stream, payload in self._frames.feed(data):
                kept = self._stdout if stream == STDOUT else self._stderr
                kept += payload
            del self._stderr[:-_STDERR_BYTES]
        return True

    def close_input(self) -> None:
        """Close the command's stdin; its stdout can still be read."""
        self._hijacked.close_input()

    def close(self) -> None:
        """End the session."""
        self._closed = True
        self._hijacked.close()


class Log:
    """A container's log as pairs: whether a piece is of stderr, and the piece."""

    def __init__(self, response: Any) -> None:
        """Wrap the engine's response."""
        self._response = response
        if isinstance(sock := self._socket(), socket.socket):
            close_in_child(sock)

    def __iter__(self) -> Iterator[tuple[bool, bytes]]:
        """Yield what the response brings, until the container ends, the engine stops or `close` is called."""
        frames = Demultiplexer()
        with contextlib.suppress(OSError, urllib3.exceptions.HTTPError, requests.exceptions.RequestException):
            for data in self._response.iter_content(None):
                for stream, payload in frames.feed(data):
                    yield stream == STDERR, payload

    def close(self) -> None:
        """Close the connection; a thread that reads from it wakes up."""
        sock = self._socket()
        with contextlib.suppress(OSError):
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)
        self._response.close()

    def _socket(self) -> Any:
        """Return the connection's socket; `None` when the response is read and its connection is used for others."""
        return getattr(getattr(self._response.raw, "connection", None), "sock", None)


def frames(attached: HijackedSocket) -> Iterator[tuple[bool, bytes]]:
    """Yield what an attached stream brings: whether a piece is of stderr, and the piece."""
    demultiplexer = Demultiplexer()
    while data := attached.recv():
        for stream, payload in demultiplexer.feed(data):
            yield stream == STDERR, payload
