"""What other tools are told of a machine."""

from __future__ import annotations

import shlex
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.engine.output import Output
from pytest_virtainers.handle.vm import VM
from pytest_virtainers.keys import KeyPair, Keys
from pytest_virtainers.progress import SILENT
from pytest_virtainers.settings import resolve
from pytest_virtainers.spec import merge

if TYPE_CHECKING:
    from collections.abc import Iterator

ENGINE = SimpleNamespace(kind="podman", url="unix:///tmp/x y.sock")


@pytest.fixture
def vm() -> Iterator[VM]:
    endpoint: Any = SimpleNamespace(address="10.0.0.2", ssh_options=dict, engine=ENGINE)
    container: Any = SimpleNamespace(id="0123", close=lambda: None, stdout=Output(), stderr=Output())
    keys = Keys(KeyPair("PRIVATE", ""), KeyPair("", "ssh-ed25519 AAAA"))
    network: Any = None
    spec = merge(resolve([]).shape)
    made = VM(
        spec, user="debian", keys=keys, container=container, endpoint=endpoint, network=network, progress=SILENT
    )
    yield made
    made.close()


def test_ansible_goes_on_with_no_connection_to_another_machine_of_this_name(vm: VM) -> None:
    words = shlex.split(vm.ansible_vars()["ansible_ssh_common_args"])
    assert words == ["-F", str(vm.ssh_config()), "-o", "ControlPath=none"]


def test_the_console_is_opened_in_the_engine_that_has_the_machine(vm: VM) -> None:
    assert vm.console_command == "podman --url 'unix:///tmp/x y.sock' exec -it 0123 console"
