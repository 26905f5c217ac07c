"""The HTTP API of an engine with the answers of a test: for tests of `engine/docker`.

`memory_engine` is for tests of the code that uses an engine.
"""

import json
import re
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Answer = tuple[int, object] | Callable[[BaseHTTPRequestHandler], None]

PODMAN = {"ApiVersion": "1.41", "Version": "4.9", "Components": [{"Name": "Podman Engine"}]}
DOCKER = {"ApiVersion": "1.41", "Version": "20.10", "Components": [{"Name": "Engine"}]}


class FakeEngine(HTTPServer):
    """Listens on a free port; `answers` maps `METHOD /path` (without version) to a reply.

    `asked` lists the requests, and `sent` their bodies.
    """

    def __init__(self, answers: Mapping[str, Answer], about: Mapping[str, object]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = {"GET /version": (200, about), **answers}
        self.asked: list[str] = []
        self.sent: list[bytes] = []
        self.url = f"tcp://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeEngine

    def _answer(self) -> None:
        path = re.sub(r"^/v[\d.]+", "", self.path).partition("?")[0]
        self.server.sent.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.server.asked.append(f"{self.command} {path}")
        answer = self.server.answers.get(f"{self.command} {path}", (404, {"message": "there is no such thing"}))
        if callable(answer):
            answer(self)
            return
        status, content = answer
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
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
    """Serve during the block; after it, connections are refused."""
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


def echo(request: BaseHTTPRequestHandler) -> None:
    """Answer an exec session that waits for two bytes, sends them in capitals, and ends."""
    request.wfile.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
    said = request.rfile.read(2).upper()
    request.wfile.write(struct.pack(">BxxxL", 1, len(said)) + said)


EXEC: Mapping[str, Answer] = {
    "GET /containers/c/json": (
        200,
        {
            "Id": "c",
            "Name": "/c",
            "Config": {"Env": []},
            "HostConfig": {"NetworkMode": "default"},
            "NetworkSettings": {"Networks": None},
        },
    ),
    "POST /containers/c/exec": (201, {"Id": "e"}),
    "POST /exec/e/start": echo,
}


def credentials(folder: Path) -> ssl.SSLContext:
    """Put `ca.pem`, `cert.pem` and `key.pem` into `folder`; return settings of a server that accepts only these."""
    folder.mkdir(parents=True, exist_ok=True)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake engine")])
    usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)  # signatures, certificates
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    for file in ("ca.pem", "cert.pem"):
        (folder / file).write_bytes(certificate)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    return server
