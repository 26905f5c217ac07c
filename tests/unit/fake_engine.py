"""A stand-in for an engine, at the wire: its HTTP API with the answers that a test wants."""

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

Answer = tuple[int, object] | Callable[[BaseHTTPRequestHandler], None]

PODMAN = {"ApiVersion": "1.41", "Version": "4.9", "Components": [{"Name": "Podman Engine"}]}
DOCKER = {"ApiVersion": "1.41", "Version": "20.10", "Components": [{"Name": "Engine"}]}


class FakeEngine(HTTPServer):
    """Listens on a free port; `answers` maps `METHOD /path` (without version) to what it says, `asked` lists it."""

    def __init__(self, answers: Mapping[str, Answer], about: Mapping[str, object]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = {"GET /version": (200, about), **answers}
        self.asked: list[str] = []
        self.url = f"tcp://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeEngine

    def _answer(self) -> None:
        path = re.sub(r"^/v[\d.]+", "", self.path).partition("?")[0]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {path}")
        answer = self.server.answers.get(f"{self.command} {path}", (404, {"message": "there is no such thing"}))
        if callable(answer):
            answer(self)
            return
        status, content = answer
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def serving(
    answers: Mapping[str, Answer] | None = None,
    *,
    about: Mapping[str, object] = PODMAN,
    tls: ssl.SSLContext | None = None,
) -> Iterator[FakeEngine]:
    """Serve during the block; at its end, nobody answers any more."""
    server = FakeEngine(answers or {}, about)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
