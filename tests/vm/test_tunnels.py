"""Tunnels: ports of the guest here, and local ports in the guest."""

import http.server
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_virtainers import VM, SSHError


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310  (an address of ours)
        content: bytes = answer.read()
    return content


def test_forward_serves_many_connections(session_vm: VM) -> None:
    session_vm.run("mkdir -p /tmp/web && head -c 300000 /dev/urandom >/tmp/web/file")
    wanted = bytes(session_vm.run("cat /tmp/web/file").stdout_bytes)
    with session_vm.popen(["python3", "-m", "http.server", "8000", "--bind", "127.0.0.1"], cwd="/tmp/web"):
        session_vm.wait_for_port(8000)
        with session_vm.forward(8000) as url:
            assert url == f"http://127.0.0.1:{url.port}"
            with ThreadPoolExecutor(5) as pool:
                assert set(pool.map(fetch, [f"{url}/file"] * 8)) == {wanted}
        with pytest.raises(OSError, match="refused"):
            fetch(url)
    with session_vm.forward(8000) as url, pytest.raises(OSError):  # noqa: PT011  (whatever the guest's refusal becomes)
        fetch(url)


def test_reverse_offers_a_local_service_in_the_guest(session_vm: VM, tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("from outside")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with session_vm.reverse(server.server_port, guest_port=8001) as port:
            assert port == 8001
            assert session_vm.run("curl -s http://localhost:8001/hello").stdout == "from outside"
            with pytest.raises(SSHError, match="its sshd refuses to listen on port 8001"):
                session_vm.reverse(server.server_port, guest_port=8001).__enter__()
        session_vm.wait_until_fails("curl -s http://localhost:8001/hello")
        server.shutdown()
