"""The container of a VM loses its network while the VM runs, as by `docker network disconnect`."""

import re
import secrets
import time
import urllib.request
from collections.abc import Iterator

import pytest

from pytest_virtainers import VM, SSHError, VMFactory
from pytest_virtainers.engine.base import Network
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.plan import NetworkPlan

_SECONDS = 45  # less than the 50 after which an emulated guest counts as hanging; on a quiet host it takes 5


@pytest.fixture
def network(engine: DockerEngine) -> Iterator[Network]:
    """Create a network that an operator manages, not this run."""
    run = secrets.token_hex(4)
    made = engine.create_network(NetworkPlan(f"operators-{run}"), run)
    yield made
    made.close()


@pytest.fixture
def vm(network: Network, vm_factory: VMFactory) -> VM:
    made = vm_factory("web", network={"name": network.name, "mode": "existing", "source": network.name})
    made.run("true")
    return made


def disconnect(engine: DockerEngine, vm: VM, network: str) -> None:
    engine.api.disconnect_container_from_network(vm.machine.container.id, network, force=True)


def reached_directly(vm: VM) -> bool:
    return vm.machine.endpoint.ssh_options() == {}


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310  (an address of ours)
        content: bytes = answer.read()
    return content


def test_a_running_command_fails_and_the_next_one_uses_the_relay(
    vm: VM, engine: DockerEngine, network: Network
) -> None:
    direct, before = reached_directly(vm), vm.ip
    with vm.popen("sleep 600") as running:
        vm.wait_until_succeeds("pgrep -x sleep")
        disconnect(engine, vm, network.name)
        began = time.monotonic()
        if direct:
            lost = f"disconnected from network {network.name} ({network.name})"
            message = (
                rf"web: its container was {re.escape(lost)}; the SSH connection broke while .*sleep 600.* ran, and "
                r"it may still run\. The next command goes through the engine"
            )
            with pytest.raises(SSHError, match=message):
                running.wait(120)
            assert time.monotonic() - began < _SECONDS
        assert vm.run("hostname").stdout == "web\n"
        assert time.monotonic() - began < _SECONDS
        assert not vm.ip
        vm.run("pkill -x sleep")

    engine.api.connect_container_to_network(vm.machine.container.id, network.name, ipv4_address=before)
    assert vm.ip == before
    assert vm.run("hostname").stdout == "web\n"


def test_the_next_command_does_not_fail(vm: VM, engine: DockerEngine, network: Network) -> None:
    vm.run("mkdir -p /tmp/www && echo here >/tmp/www/index.html")
    vm.run("systemd-run python3 -m http.server 8000 --directory /tmp/www", sudo=True)
    vm.wait_for_port(8000)
    with vm.forward(8000) as url:
        assert fetched(url) == b"here\n"
        disconnect(engine, vm, network.name)
        began = time.monotonic()
        assert fetched(url) == b"here\n"
    assert vm.run("hostname").stdout == "web\n"
    assert time.monotonic() - began < _SECONDS
    vm.write_text("/tmp/file", "text")
    assert vm.read_text("/tmp/file") == "text"


def test_removing_a_network_affects_only_its_card(
    network: Network, vm_factory: VMFactory, engine: DockerEngine
) -> None:
    vm = vm_factory("web", nics=[{"name": network.name, "mode": "existing", "source": network.name}])
    disconnect(engine, vm, network.name)
    network.close()
    vm.nics.remove(vm.nics[network.name])
    assert vm.nics == {}
    assert vm.run("hostname").stdout == "web\n"
