"""The confinement of a guest, or of a QEMU that its guest controls: each refusal next to a call that succeeds."""

import http.server
import json
import socket
import subprocess
import threading

import pytest

from pytest_virtainers import VM
from tests.vm.calling import CONNECT, reaches

_LISTENING = "ss --listening --tcp --numeric --no-header 'sport = :{}'"


def test_qemu_has_no_rights_to_lose(session_vm: VM) -> None:
    code, seen = session_vm.machine.container.run(
        ["sh", "-c", "grep -ls ^qemu-system /proc/[0-9]*/cmdline | xargs dirname"]
    )
    assert code == 0, seen
    (process,) = seen.decode().split()
    lines = session_vm.machine.container.run(["cat", f"{process}/status"])[1].decode().splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    assert set(status["Uid"].split()) == {"64055"}
    assert len(set(status["Gid"].split())) == 1
    assert "0" not in status["Gid"].split() + status["Groups"].split()
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2", "a filter of system calls"


def test_a_reverse_tunnel_listens_on_the_guests_loopback_only(session_vm: VM) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        with session_vm.reverse(server.server_port, guest_port=8002):
            rows = session_vm.run(_LISTENING.format(8002)).stdout.splitlines()
        assert rows
        assert {row.split()[3] for row in rows} <= {"127.0.0.1:8002", "[::1]:8002"}


def test_only_the_engines_host_reaches_the_port_of_a_clones_session(session_vm: VM) -> None:
    """A call of a VM arrives at the guest, where nothing listens; the inner gateway refuses its own guest."""
    assert reaches(session_vm, session_vm.ip, 22), "connections to its own container arrive"
    assert not reaches(session_vm, session_vm.ip, 50022)
    heard = "print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 30).recv(1))"
    assert (
        session_vm.run(["python3", "-c", f"import socket, sys; {heard}", "192.168.100.1", "50022"]).stdout == "b''\n"
    )


def test_the_bridges_link_local_address_is_out_of_reach(session_vm: VM) -> None:
    gateway = str(session_vm.network.subnet[1])  # type: ignore[index]
    shown = subprocess.run(["ip", "-json", "address"], capture_output=True, check=True).stdout
    bridge = next(
        (each for each in json.loads(shown) if gateway in {one.get("local") for one in each["addr_info"]}), None
    )
    link_local = next(
        (one["local"] for one in (bridge or {"addr_info": ()})["addr_info"] if one["scope"] == "link"), ""
    )
    if not link_local:
        pytest.skip("the engine's bridge is not on this host, or has no IPv6")
    with socket.create_server(("::", 0), family=socket.AF_INET6) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        port = str(server.getsockname()[1])
        call = ["python3", "-c", CONNECT.format(5)]
        has_ipv6 = session_vm.machine.container.run(["test", "-s", "/proc/net/if_inet6"])[0] == 0
        if has_ipv6:
            code, said = session_vm.machine.container.run([*call, f"{link_local}%eth0", port])
            assert code == 0, f"its container reaches it: {said.decode()}"
        assert not session_vm.run([*call, f"{link_local}%eth0", port], check=False, timeout=60)


def _accept(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return
