"""A web page with noVNC, and the WebSocket that it uses, both on one port of 127.0.0.1.

https://github.com/novnc/noVNC/blob/master/docs/EMBEDDING.md
"""

from __future__ import annotations

import contextlib
import mimetypes
import socket
import threading
from typing import TYPE_CHECKING

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Origin

from pytest_virtainers.support.forks import Owner, close_in_child

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_virtainers.vm.screen import Display

_SOCKET = "/websockify"  # noVNC's default
_CHUNK_BYTES = 64 * 1024
_PATIENCE_SECONDS = 2  # with browsers, which are on this machine: the end of the block waits for silent ones


@contextlib.contextmanager
def serving(files: Mapping[str, bytes], display: Display, port: int) -> Iterator[str]:
    """Serve noVNC during the block, which gets the page's URL; the password is in the part that browsers do not send.

    Args:
        files: the files by their paths on the server, such as `/vnc.html`.
        display: the screen that the page shows.
        port: on 127.0.0.1; 0: any free port.

    Raises:
        OSError: the port is in use.
    """
    # Pages of other servers may not connect: browsers send a page's origin.
    listener = close_in_child(socket.create_server(("127.0.0.1", port)))
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def answer(_connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        return None if path == _SOCKET else _file(files, path)

    def lead_on(browser: ServerConnection) -> None:
        with contextlib.suppress(OSError), socket.create_connection((display.host, display.port)) as viewer:
            _join(browser, viewer)

    owner = Owner("a page with noVNC", "Use a thread.")
    server = serve(
        lead_on,
        sock=listener,
        origins=[Origin(origin)],
        compression=None,
        process_request=answer,
        server_header=None,
        open_timeout=_PATIENCE_SECONDS,
        close_timeout=_PATIENCE_SECONDS,
    )
    thread = threading.Thread(target=server.serve_forever, name="novnc", daemon=True)
    thread.start()
    try:
        yield f"{origin}/vnc.html#autoconnect=true&resize=scale&password={display.password}"
    finally:
        if owner.is_here:  # a forked child would wake the server's thread in its parent
            server.shutdown()
            thread.join()


def _file(files: Mapping[str, bytes], path: str) -> Response:
    body = files.get(path)
    if body is None:
        return Response(404, "Not Found", Headers({"Content-Length": "0", "Connection": "close"}))
    kind = "text/javascript" if path.endswith(".js") else mimetypes.guess_type(path)[0] or "application/octet-stream"
    headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
    return Response(200, "OK", Headers(headers), body)


def _join(browser: ServerConnection, viewer: socket.socket) -> None:
    """Copy in both directions until one side closes."""

    def back() -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            while data := viewer.recv(_CHUNK_BYTES):
                browser.send(data)
        browser.close()

    copying = threading.Thread(target=back, daemon=True)
    copying.start()
    with contextlib.suppress(ConnectionClosed, OSError):
        for message in browser:
            viewer.sendall(message if isinstance(message, bytes) else message.encode())
    with contextlib.suppress(OSError):
        viewer.shutdown(socket.SHUT_RDWR)
    copying.join()
