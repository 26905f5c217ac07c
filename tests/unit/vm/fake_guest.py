"""A VM whose SSH connection only returns results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import paramiko

from pytest_virtainers import Result
from tests.unit.vm.fake_container import KVM, Container, machine

if TYPE_CHECKING:
    from pytest_virtainers.vm.vm import VM

FORBIDDEN = paramiko.ChannelException(1, "Administratively prohibited")
REFUSED = paramiko.ChannelException(2, "Connect failed")


def result(text: str = "", code: int = 0) -> Result:
    return Result("a command", code, text.encode(), b"", 0.1)


def unit(state: str, sub: str) -> Result:
    return result(f"LoadState=loaded\nActiveState={state}\nSubState={sub}\nResult=success\n")


class Connection:
    """An SSH connection: commands and channels have these results in turn; the last one is repeated."""

    alive = True

    def __init__(self, results: list[Any]) -> None:
        self.results = results
        self.asked: list[Any] = []
        self.transport = self
        self.hangs = False

    def next_result(self) -> Any:
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result

    def execute(self, command: str, *, stdout: Any, **_: object) -> int:
        self.asked.append(command)
        result: Result = self.next_result()
        stdout(result.stdout_bytes)
        return result.exit_code

    def open_channel(self, kind: str, target: tuple[str, int], _origin: object) -> Any:
        self.asked.append((kind, target))
        return self.next_result()

    def answers(self, _seconds: float) -> bool:
        return not self.hangs


def waiting(*results: Any, hangs: bool = False) -> tuple[VM, Connection]:
    """Return a VM called `web` with these results, and its connection."""
    vm = machine(Container(KVM, console=b"login:\n"), name="web")
    connection = Connection(list(results))
    connection.hangs = hangs
    made: Any = connection
    vm.machine.ssh.current = made
    return vm, connection


def web(*results: Any, hangs: bool = False) -> VM:
    return waiting(*results, hangs=hangs)[0]
