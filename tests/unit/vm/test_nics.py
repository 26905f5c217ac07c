"""Network cards whose setup in the guest fails."""

from types import SimpleNamespace
from typing import Any

import pytest
from typing_extensions import override

from pytest_virtainers.engine.facts import Addresses
from pytest_virtainers.engine.plan import Port
from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.vm.vm import VM
from tests.unit.vm.fake_container import RUNS, Container, machine


class Plugs(Container):
    """Records the requests to it."""

    def __init__(self) -> None:
        super().__init__(RUNS)
        self.asked: list[str] = []

    @override
    def connect(self, port: Port) -> Addresses:
        self.asked.append("connect")
        return Addresses("02:42:0a:d5:00:80", "10.1.0.128")

    @override
    def disconnect(self, network: str) -> None:
        self.asked.append(f"disconnect {network}")

    @override
    def reply(self, command: list[str]) -> tuple[int, bytes]:
        self.asked.append(" ".join(command))
        return 0, b'{"mac": "02:42:0a:d5:00:80", "addresses": ["10.1.0.128/24"], "mtu": 1500}'


class NetworkOfOne:
    engine_name, has_host, is_wire = "engine-lab", True, False

    def __init__(self) -> None:
        self.there: list[object] = []

    def port(self, _name: str, _ip: object) -> None:
        pass

    def join(self, vm: object, _mac: str) -> None:
        self.there.append(vm)

    def leave(self, vm: object) -> None:
        self.there.remove(vm)


def in_a_guest_without_the_card(container: Any) -> VM:
    vm = machine(container)
    failing: Any = SimpleNamespace(
        alive=True, execute=lambda _command, *, stderr, **_: stderr(b"the guest does not show the network card") or 1
    )
    vm.machine.ssh.current = failing
    return vm


def test_a_card_that_the_guest_does_not_show_is_removed_again() -> None:
    container, network = Plugs(), NetworkOfOne()
    vm = in_a_guest_without_the_card(container)
    with pytest.raises(VirtainerError, match="the guest does not show the network card"):
        vm.nics.add(network)  # type: ignore[arg-type]
    assert container.asked == [
        "connect",
        "device join nic1 02:42:0a:d5:00:80",
        "device remove nic1",
        "disconnect engine-lab",
    ]
    assert (network.there, dict(vm.nics)) == ([], {})
    with pytest.raises(VirtainerError, match="the guest does not show the network card"):
        vm.nics.add()
    assert container.asked[-2:] == ["device add-nic nic2 52:54:00:76:70:02", "device remove nic2"]
