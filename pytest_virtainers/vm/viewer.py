"""The guest's screen, keyboard and pointer for a VNC viewer (RFC 6143) on this machine."""

from __future__ import annotations

import contextlib
import functools
import io
import secrets
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.errors import EngineError, SpecError
from pytest_virtainers.vm.power import Power
from pytest_virtainers.vm.tunnels import join, listening

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Iterator

    from pytest_virtainers.engine.base import Stream

_NOVNC = "/usr/share/novnc"
_PASSWORD_BYTES = 6  # eight characters, of which VNC takes no more


@dataclass(frozen=True)
class Display:
    """Where a viewer finds the screen; as text it is a URL, `vnc://127.0.0.1:40123`.

    Attributes:
        host: of this machine.
        port: there.
        password: that the viewer is asked for.
    """

    host: str
    port: int
    password: str

    def __str__(self) -> str:
        return f"vnc://{self.host}:{self.port}"


class Viewer(Power):
    """The part of the handle that lets somebody look on, and lend a hand."""

    @contextlib.contextmanager
    def vnc(self, *, port: int = 0) -> Iterator[Display]:
        """Give a local address for VNC viewers, any number of them, during the block; needs no SSH.

        Args:
            port: on this machine's 127.0.0.1; 0: any that is free.

        Raises:
            VMGone: the machine is over.
            OSError: the port is taken.
        """
        __tracebackhide__ = True
        self._check_there()
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        with listening(f"{self.name}-vnc", functools.partial(self._show, password), port) as given:
            yield Display("127.0.0.1", given, password)

    @contextlib.contextmanager
    def novnc(self, *, port: int = 0) -> Iterator[str]:
        """Give the URL of a local web page that shows the screen, during the block (needs the extra `novnc`).

        The password is in it, in the part that no browser sends on.

        Args:
            port: on this machine's 127.0.0.1; 0: any that is free.

        Raises:
            SpecError: the package that serves it is not installed.
            VMGone: the machine is over.
            EngineError: the page could not be copied out of its container.
            OSError: the port is taken.
        """
        __tracebackhide__ = True
        try:
            from pytest_virtainers.vm import page
        except ModuleNotFoundError as error:
            raise SpecError(
                f"a page with noVNC needs the package {error.name}: pip install 'pytest-virtainers[novnc]'"
            ) from None
        with self.vnc() as display, page.serving(self._page(), display, port) as url:
            yield url

    def _page(self) -> dict[str, bytes]:
        """Give noVNC's files by their paths on a server."""
        pieces = self.container.archive(_NOVNC)
        if pieces is None:
            raise EngineError(f"{self.name}: its container has no {_NOVNC}: another version has made it")
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
            members = [(member.name, tar.extractfile(member)) for member in tar if member.isfile()]
            return {f"/{name.partition('/')[2]}": file.read() for name, file in members if file is not None}

    def _show(self, password: str, viewer: socket.socket, over: threading.Event) -> None:
        with viewer, contextlib.suppress(EngineError, OSError):  # the viewer sees its connection end
            stream = self.container.stream(["vnc", "--password"])
            stream.settimeout(None)
            channel = _Channel(stream)
            channel.sendall(f"{password}\n".encode())  # each time: QEMU has one, and there may be other blocks
            join(viewer, channel, over)


class _Channel:
    """An exec session in the shape that `join` asks for."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.recv = stream.recv
        self.shutdown_write = stream.close_input
        self.closed = False

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        while data:
            data = data[self._stream.send(data) :]

    def close(self) -> None:
        """End the session."""
        self.closed = True
        self._stream.close()
