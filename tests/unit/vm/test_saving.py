"""The SSH session that clones of a saved VM continue, and guests that cannot have one."""

import subprocess

import pytest

from pytest_virtainers.errors import SSHError
from pytest_virtainers.ssh import client, resumable
from pytest_virtainers.vm import saving
from pytest_virtainers.vm.machine import Machine
from tests.unit.vm.fake_container import RUNS, Container, machine


class Connection:
    """An SSH connection whose commands have this exit code, or break it."""

    stale, transport = "", None

    def __init__(self, outcome: int | Exception) -> None:
        self._outcome = outcome
        self.closed, self.alive = False, True

    def execute(self, _command: str, **_: object) -> int:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def close(self) -> None:
        self.closed = True


def connected(code: int) -> Machine:
    """Return a machine whose commands have this exit code."""
    vm, connection = machine(Container(RUNS)), Connection(code)
    vm.machine.ssh.current = connection  # type: ignore[assignment]
    return vm.machine


def test_a_guest_without_the_serial_port_has_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code = subprocess.run(["sh", "-c", resumable.SERVE], capture_output=True, check=False).returncode
    assert code != 0
    monkeypatch.delattr(client, "log_in")
    assert saving.open_line(connected(code)) is None


def test_a_line_that_breaks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    over_line = Connection(SSHError("'true' could not be started over SSH"))
    monkeypatch.setattr(client, "log_in", lambda *_: over_line)
    assert saving.open_line(connected(0)) is None
    assert over_line.closed
