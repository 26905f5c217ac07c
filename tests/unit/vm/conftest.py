"""A network with three VMs."""

from ipaddress import IPv4Network
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers.config.network_spec import NetworkSpec
from pytest_virtainers.vm.network import Network
from tests.unit.vm.fake_network import MACS, FakeVM


@pytest.fixture
def network() -> Network:
    made: Any = SimpleNamespace(name="engine-lab", subnet=IPv4Network("10.1.0.0/24"), ipv6=False, driver="bridge")
    return Network(NetworkSpec("lab", "isolated"), made)


@pytest.fixture
def vms(network: Network) -> dict[str, Any]:
    made = {name: FakeVM(name) for name in "abc"}
    for name, vm in made.items():
        network.join(vm, MACS[name])  # type: ignore[arg-type]
    return made
