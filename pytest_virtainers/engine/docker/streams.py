"""Byte streams into and out of containers: attached streams and exec sessions.

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
_TOLD_BYTES = 1024  # of what a command says on stderr, at most


class Demultiplexer:
    """Cuts the engine's byte stream into `(stream number, payload)` pairs."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take what arrived and give the whole frames so far."""
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
    """The connection that remains when the engine has switched from HTTP to a raw stream."""

    def __init__(self, sdk_socket: Any) -> None:
        """Take the connection over from the SDK, whose own objects would never be closed in order."""
        response = getattr(sdk_socket, "_response", None)
        self._socket: Any = getattr(sdk_socket, "_sock", sdk_socket)
        self._early = self._read_ahead(response)
        if type(self._socket) is socket.socket and response is not None:
            self._socket = self._socket.dup()  # TLS sockets and SSH channels, which cannot do that, stay the SDK's
            response.close()
        self._response = response
        self._socket.settimeout(None)
        if isinstance(self._socket, socket.socket):  # a channel goes with its SSH session
            close_in_child(self._socket)

    def _read_ahead(self, response: Any) -> bytes:
        """Give what the HTTP client has buffered behind the response's headers, which the SDK would lose."""
        buffered: Any = getattr(getattr(getattr(response, "raw", None), "_fp", None), "fp", None)
        if not hasattr(buffered, "peek"):
            return b""
        self._socket.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):  # so say TLS sockets that nothing has arrived
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
        """Write some of `data` and tell how many bytes."""
        return int(self._socket.send(data))

    def close_input(self) -> None:
        """Say that nothing more will be written."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close, and wake a thread that reads."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.abandon()

    def abandon(self) -> None:
        """Close this process's copy only."""
        with contextlib.suppress(OSError):
            self._socket.close()
            if isinstance(self._socket, ssl.SSLSocket) and self._response is not None:
                self._response.raw.close()  # else it would keep the socket open


class ExecStream:
    """An exec session's stdin and stdout as a socket, in the shape that `paramiko.Transport` asks for."""

    def __init__(self, hijacked: HijackedSocket) -> None:
        self._hijacked = hijacked
        self._frames = Demultiplexer()
        self._ready, self._said = bytearray(), bytearray()
        self._closed = False  # paramiko looks at this attribute of sockets

    def settimeout(self, seconds: float | None) -> None:
        """Limit each `recv` and `send`, in seconds."""
        self._hijacked.settimeout(seconds)

    def send(self, data: bytes) -> int:
        """Write some of `data` to the command's stdin."""
        return self._hijacked.send(data)

    def recv(self, size: int) -> bytes:
        """Read at most `size` bytes of the command's stdout; empty at its end."""
        self._read_on()
        taken = bytes(self._ready[:size])
        del self._ready[:size]
        return taken

    def wait_for_output(self) -> None:
        """Wait for the first of the command's stdout; raises `ConnectionError` with its stderr when it ends."""
        if not self._read_on():
            raise ConnectionError(self._said.decode(errors="replace").strip() or "it ended without a word")

    def _read_on(self) -> bool:
        """Wait until there is something of stdout to give; tell whether it came."""
        while not self._ready:
            data = self._hijacked.recv()
            if not data:
                return False
            for stream, payload in self._frames.feed(data):
                kept = self._ready if stream == STDOUT else self._said
                kept += payload
            del self._said[:-_TOLD_BYTES]
        return True

    def close_input(self) -> None:
        """End the command's stdin, and go on reading."""
        self._hijacked.close_input()

    def close(self) -> None:
        """End the session."""
        self._closed = True
        self._hijacked.close()


class Log:
    """A container's log: pairs of whether a piece is of stderr, and the piece."""

    def __init__(self, response: Any) -> None:
        """Take the engine's answer over."""
        self._response = response
        if isinstance(sock := self._socket(), socket.socket):
            close_in_child(sock)

    def __iter__(self) -> Iterator[tuple[bool, bytes]]:
        """Give what there is, and what comes, until the container ends, the engine goes or `close`."""
        frames = Demultiplexer()
        with contextlib.suppress(OSError, urllib3.exceptions.HTTPError, requests.exceptions.RequestException):
            for data in self._response.iter_content(None):
                for stream, payload in frames.feed(data):
                    yield stream == STDERR, payload

    def close(self) -> None:
        """Close, and wake a thread that reads."""
        sock = self._socket()
        with contextlib.suppress(OSError):
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)
        self._response.close()

    def _socket(self) -> Any:
        """Return the connection's socket; `None` once the answer is read and the connection serves others."""
        return getattr(getattr(self._response.raw, "connection", None), "sock", None)


class Pieces:
    """Pieces of bytes, as they come, as a file to read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or what is left."""
        gathered, length = [self._rest], len(self._rest)
        while length < size and (piece := next(self._pieces, b"")):
            gathered.append(piece)
            length += len(piece)
        data = b"".join(gathered)
        self._rest = data[size:]
        return data[:size]
