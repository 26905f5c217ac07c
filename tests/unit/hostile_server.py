"""A local HTTP server that misbehaves: each request is answered by the next of its `days`."""

import contextlib
import http.server
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

PIECE = 65536  # bytes that the client reads at once
CONTENT = bytes(range(256)) * 4096  # 1 MiB
Day = Callable[["Request"], None]


class Request(http.server.BaseHTTPRequestHandler):
    """One request, answered by one of `days`."""

    server: "HostileServer"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.close_connection = True
        (self.server.days.pop(0) if self.server.days else good)(self)

    def log_message(self, *_words: object) -> None:
        """Log nothing."""

    def begin(self, status: int = 200, *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    @property
    def start(self) -> int:
        """The offset that the client requests; 0 if its version is not the current one."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        known = self.headers.get("If-Range", self.server.version)
        return int(wanted[1]) if wanted and known == self.server.version else 0

    def send(self, cut: int | None = None, *, more: int = 0) -> None:
        """Send the requested range, but only `cut` bytes of it, and announce `more` bytes than there are."""
        content, start = self.server.content, self.start
        if start >= len(content) and start:
            self.begin(416, length=0, Content_Range=f"bytes */{len(content)}")
            return
        headers = {"ETag": self.server.version} if self.server.version else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content) + more}"
        self.begin(206 if start else 200, length=len(content) - start + more, **headers)
        self.wfile.write(content[start:][:cut])


def good(request: Request) -> None:
    """Send the requested range."""
    request.send()


def cut(after: int) -> Day:
    """Close the connection after some bytes."""
    return lambda request: request.send(after)


def longer(request: Request) -> None:
    """Announce more bytes than there are."""
    request.send(more=1000)


def status(code: int, **headers: str) -> Day:
    """Answer with a status."""
    return lambda request: request.begin(code, length=0, **headers)


def no_ranges(request: Request) -> None:
    """Send the whole file, whatever range is requested."""
    del request.headers["Range"]
    request.send()


def longer_without_ranges(request: Request) -> None:
    """Send the whole file, and announce more."""
    del request.headers["Range"]
    longer(request)


def silent(request: Request) -> None:
    """Send one piece, then nothing for a long time."""
    request.begin(200, length=len(CONTENT), ETag=request.server.version)
    request.wfile.write(CONTENT[:PIECE])
    request.wfile.flush()
    request.server.over.wait(30)


class HostileServer(http.server.ThreadingHTTPServer):
    """Serve `content` with the ETag `version`, and record the requested `ranges`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.content, self.version = CONTENT, '"one"'
        self.days: list[Day] = []
        self.ranges: list[str | None] = []
        self.over = threading.Event()
        self.scheme = "http"

    def handle_error(self, *_request: object) -> None:
        """Ignore clients that disconnect."""

    @property
    def url(self) -> str:
        host = "localhost" if self.scheme == "https" else "127.0.0.1"
        return f"{self.scheme}://{host}:{self.server_port}/disk.img"


@contextlib.contextmanager
def running(certificate: Path | None = None) -> Iterator[HostileServer]:
    """Run a server for the block, with TLS if there is a certificate."""
    server = HostileServer()
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=lambda: server.serve_forever(0.02))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
