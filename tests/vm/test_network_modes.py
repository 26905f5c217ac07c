"""Other modes of networks: existing ones of the engine, routed, and macvlan."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_virtainers import EngineError, VMFactory
from pytest_virtainers.engine import host, subnets
from pytest_virtainers.engine.base import Container
from pytest_virtainers.engine.docker.engine import DockerEngine
from tests.vm.hearing import heard, needs_ears
from tests.vm.stranger import PORT, web_server

pytestmark = pytest.mark.each_engine
_ASK = "import urllib.request, sys; urllib.request.urlopen(sys.argv[1], timeout=60)"


def free_subnet() -> str:
    """Return a subnet for a network that only one test uses."""
    return str(subnets.free(host.networks(), 1)[0])


@pytest.fixture
def database(engine: DockerEngine, runtime_image: str) -> Iterator[Container]:
    """Run a service on a network that was created before, and is removed right after the test."""
    with web_server(engine, runtime_image) as container:
        yield container


def test_vms_join_an_existing_network(database: Container, vm_factory: VMFactory) -> None:
    lab = {"name": "others", "mode": "existing", "source": database.name}
    there = vm_factory("there", network=lab)
    joined = vm_factory("joined", nics=[lab])
    for vm, name in ((there, "db"), (joined, database.addresses().address)):
        vm.wait_until_succeeds(["python3", "-c", _ASK, f"http://{name}:{PORT}/"])


@needs_ears
def test_packets_leave_a_routed_network_with_their_own_address(vm_factory: VMFactory, engine: DockerEngine) -> None:
    routed = {"name": "routed", "mode": "routed", "subnet": free_subnet()}
    if engine.kind == "podman":
        with pytest.raises(EngineError, match=r"Podman's networks hide their addresses behind the host's"):
            vm_factory("r", network=routed)
        return
    vm = vm_factory("r", network=routed)
    source = bytes(map(int, vm.ip.split(".")))
    with heard(source + bytes([198, 51, 100, 1])) as on:
        vm.run(["ping", "-c2", "-W2", "198.51.100.1"], sudo=True, check=False)
    assert uplink() in on


def test_macvlan_machines_are_on_the_network_of_the_host(vm_factory: VMFactory, engine: DockerEngine) -> None:
    lan = {"name": "hosts-wire", "mode": "macvlan", "parent": uplink(), "subnet": free_subnet()}
    if engine.kind == "podman" and os.geteuid() != 0:
        with pytest.raises(EngineError, match=r"A rootless engine does not see the host's"):
            vm_factory("through", network=lan)
        return
    through = vm_factory("through", network=lan)  # its first card: only the relay leads there
    one, two = (vm_factory(name, nics=[lan]) for name in ("one", "two"))
    for vm, to in ((one, two.nics["hosts-wire"].ip), (two, through.ip), (through, one.nics["hosts-wire"].ip)):
        vm.run(["ping", "-c1", "-W30", to], sudo=True)
    call = "import socket; socket.socket().connect(('169.254.169.254', 80))"
    assert "No route to host" in through.run(["python3", "-c", call], check=False).stderr, "refused by its container"


def uplink() -> str:
    """Return the interface of this host's default route."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    return next(row[0] for row in rows if row[1] == "00000000")
