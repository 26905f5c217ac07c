"""A VM whose container only reports events."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import override

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm.machine import Machine
from pytest_virtainers.vm.vm import VM
from tests.unit.fake_output import FakeOutput
from tests.unit.memory_engine import MemoryContainer

if TYPE_CHECKING:
    from pytest_virtainers.engine.base import Stream


def event(name: str, /, **fields: object) -> bytes:
    """Return an event as the supervisor writes it with EVENTS=json."""
    return json.dumps({"event": name, **fields}).encode() + b"\n"


class Container(MemoryContainer):
    """It has a fixed console output and fixed events, and may have ended."""

    def __init__(self, *events: bytes, console: bytes = b"login: ", ended: bool = False) -> None:
        super().__init__(stdout=FakeOutput(console), stderr=FakeOutput(b"".join(events)), ended=ended)

    @override
    def stream(self, command: list[str]) -> Stream:
        """Return `None`: no test reads it."""
        return cast("Stream", None)


def machine(container: Any, name: str = "vm") -> VM:
    endpoint: Any = SimpleNamespace(address="10.0.0.2")
    network: Any = None
    spec, keys = merge(resolve([]).shape, {"name": name}), Keys.generate()
    made = Machine(
        spec, user="debian", keys=keys, container=container, endpoint=endpoint, network=network, progress=SILENT
    )
    return VM(made)


KVM = event("started", name="web", ram_mib=512, cpus=1, accel="kvm", disk="/image", format="qcow2", prepared_s=0.1)
RUNS = event("restored", prepared_s=0.031, qemu_s=0.042, state_s=0.013)
