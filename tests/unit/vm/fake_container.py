"""A VM whose container only produces output."""

from types import SimpleNamespace
from typing import Any

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm.machine import Machine
from pytest_virtainers.vm.vm import VM
from tests.unit.fake_output import Said


class Container:
    """Wrote this on its serial console and through its supervisor, and may have ended."""

    def __init__(self, *said: str, console: bytes = b"login: ", ended: bool = False) -> None:
        self.stdout, self.ended = Said(console), ended
        self.environment: dict[str, str] = {}
        self.stderr = Said("".join(f"virtainer: {line}\n" for line in said).encode())

    def wait(self, _seconds: float) -> bool:
        return self.ended

    def stream(self, _command: list[str]) -> None:
        """Return `None`: no test reads it."""


def machine(container: Any, name: str = "vm") -> VM:
    endpoint: Any = SimpleNamespace(address="10.0.0.2")
    network: Any = None
    spec, keys = merge(resolve([]).shape, {"name": name}), Keys.generate()
    made = Machine(
        spec, user="debian", keys=keys, container=container, endpoint=endpoint, network=network, progress=SILENT
    )
    return VM(made)


KVM = "starting web: 512 MiB, 1 CPU, kvm, disk"
RUNS = "clone restored: prepared in 0.031 s, QEMU up in 0.042 s, state in 0.013 s"
