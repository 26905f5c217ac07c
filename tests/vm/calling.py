"""Check whether a VM or a container reaches a service."""

from collections.abc import Iterable

from pytest_virtainers import VM
from pytest_virtainers.engine.base import Container

# Without the last call, one in some hundred refused connections counts as successful on a busy host: Python asks the
# kernel for the error of a failed connection, and may find none.
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), {}).getpeername()"
_EACH = """
import socket, sys
for address in sys.argv[2:]:
    try:
        socket.create_connection((address, int(sys.argv[1])), 30).getpeername()
        print(address)
    except OSError:
        pass
"""
_SSH = 22


def reaches(vm: VM, address: str, port: int = _SSH) -> bool:
    return vm.run(["python3", "-c", CONNECT.format(30), address, str(port)], check=False).ok


def reached_by(vm: VM, addresses: Iterable[str], port: int = _SSH) -> list[str]:
    """Return the addresses that a VM reaches."""
    return vm.run(["python3", "-c", _EACH, str(port), *addresses], timeout=600).stdout.split()


def container_reaches(container: Container, address: str, port: int = _SSH) -> bool:
    return container.run(["python3", "-c", CONNECT.format(3), address, str(port)])[0] == 0
