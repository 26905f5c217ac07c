"""A small service, and its behaviour when its machine has trouble."""

import urllib.error
import urllib.request

import pytest

from pytest_virtainers import VM

SERVER = """
import http.server

class Keeper(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            with open("/var/lib/keeper", "ab") as file:
                file.write(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
        except OSError:
            self.send_response(507)
        self.end_headers()

http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Keeper).serve_forever()
"""
UNIT = """
[Service]
ExecStart=/usr/bin/python3 /opt/keeper.py

[Install]
WantedBy=multi-user.target
"""


def install(vm: VM, server: str = SERVER, unit: str = UNIT) -> None:
    vm.write_text("/opt/keeper.py", server)
    vm.write_text("/etc/systemd/system/keeper.service", unit)
    vm.run("systemctl enable --now keeper", sudo=True)
    vm.wait_for_unit("keeper")
    vm.wait_for_port(8080)


pytestmark = pytest.mark.virtainer("keeper", prepare=install)


def post(url: str, text: str) -> int:
    request = urllib.request.Request(url, data=text.encode())  # noqa: S310  (an address of ours)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            status: int = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
    return status


def test_it_keeps_what_is_written(vm: VM) -> None:
    with vm.forward(8080) as url:
        assert post(url, "one\n") == 204
    assert vm.read_text("/var/lib/keeper") == "one\n"


def test_a_full_disk_is_reported_and_survived(vm: VM) -> None:
    with vm.forward(8080) as url:
        with vm.faults.fill_disk("/var/lib"):
            assert post(url, "x" * 100_000) == 507
        assert post(url, "two\n") == 204


def test_it_restarts_after_a_power_cut(vm: VM) -> None:
    vm.run("sync")
    vm.crash()
    vm.start()
    vm.wait_for_unit("keeper")
    vm.wait_for_port(8080)
