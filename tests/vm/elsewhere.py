"""A machine outside of the engine's host, in a network namespace: of a company, or a cloud's metadata service."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

PORT = 8081
needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="only root makes network namespaces",
)


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Prevent other test processes of this host, such as those on another engine, from using these fixed
    addresses."""
    with Path(tempfile.gettempdir(), "virtainers-tests-elsewhere.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def machine(addresses: Sequence[str], *, gateways: Sequence[str]) -> Iterator[None]:
    """Run a machine with a web server at these addresses; the host gets an address on its network for each IP
    version.

    Args:
        addresses: of the machine.
        gateways: of the host.
    """
    _remove_leftovers()
    name, here = f"elsewhere-{os.getpid()}", f"else{os.getpid()}"
    with contextlib.ExitStack() as undo:
        _ip("netns", "add", name)
        undo.callback(_ip, "netns", "delete", name)
        _ip("link", "add", here, "type", "veth", "peer", "name", "wire", "netns", name)
        undo.callback(_ip, "link", "delete", here)
        for gateway in gateways:
            _ip("address", "add", gateway, "dev", here, *_at_once(gateway))
        _ip("link", "set", here, "up")
        for each in ("lo", "wire"):
            _ip("-netns", name, "link", "set", each, "up")
        for address in addresses:
            _ip("-netns", name, "address", "add", address, "dev", "wire", *_at_once(address))
            _ip("route", "add", address, "dev", here)
        for gateway in gateways:
            _ip("-netns", name, "route", "add", gateway, "dev", "wire")
            _ip("-netns", name, "route", "add", "default", "via", gateway, "dev", "wire")
        serve = [sys.executable, "-m", "http.server", str(PORT), "--bind", "::", "--directory", "/var/empty"]
        server = undo.enter_context(
            subprocess.Popen(["ip", "netns", "exec", name, *serve], stderr=subprocess.DEVNULL)
        )
        undo.callback(server.terminate)
        deadline = time.monotonic() + 60
        for address in addresses:
            while not reached(address):
                assert time.monotonic() < deadline, address
                time.sleep(0.1)
        yield


def reached(address: str, port: int = PORT) -> bool:
    """Return whether this host reaches a service."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), 3) as connection:
        connection.getpeername()  # see CONNECT in calling.py
        return True
    return False


def _remove_leftovers() -> None:
    """Remove what a killed run has left: its routes would conflict with those of the next run."""
    for namespace in Path("/run/netns").glob("elsewhere-*"):
        if not Path("/proc", namespace.name.removeprefix("elsewhere-")).exists():
            _ip("netns", "delete", namespace.name)  # this removes both ends of the wire


def _at_once(address: str) -> tuple[str, ...]:
    return ("nodad",) if ip_address(address).version == 6 else ()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
