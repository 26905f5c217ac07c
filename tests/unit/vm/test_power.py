"""Switching a VM off and on while it ends, panics or hangs; its container answers as QEMU would."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from pytest_virtainers import VMGone
from pytest_virtainers.errors import EngineError, GuestPanic, VirtainerError
from pytest_virtainers.vm import power
from tests.unit.vm.fake_container import RUNS, Container, event, machine

if TYPE_CHECKING:
    from collections.abc import Callable

KILLED = event("over", detail="QEMU was killed (SIGKILL)", crashed=False)
OFF = event("guest-off")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_PAUSE_SECONDS", 0.02)


class Qemu(Container):
    """Calls `happens` for each request, then answers it."""

    def __init__(self, happens: Callable[[Qemu], object] = bool) -> None:
        super().__init__(RUNS)
        self.happens = happens
        self.result: tuple[int, bytes] = (0, b'{"return": {}}')
        self.asked: list[str] = []

    @override
    def reply(self, command: list[str]) -> tuple[int, bytes]:
        self.asked += command[1:]
        self.happens(self)
        return self.result

    def report(self, event: bytes) -> None:
        self.stderr += event

    def end(self) -> None:
        self.ended = True

    def panic(self) -> None:
        self.stdout += b"Kernel panic - not syncing: so\r\n"

    def end_qemu(self) -> None:
        """End QEMU, but not the supervisor."""
        self.report(KILLED)
        self.result = 1, b"no socket /run/virtainer/qmp.sock"


@pytest.mark.parametrize(
    ("happens", "kind", "words"),
    [
        (Qemu.end, VMGone, "vm has ended: virtainer: clone restored"),
        (Qemu.panic, GuestPanic, "vm: Kernel panic - not syncing: so"),
        (Qemu.end_qemu, VMGone, r"vm has ended: QEMU was killed \(SIGKILL\)"),
    ],
)
def test_shutdown_reports_another_end_at_once(
    happens: Callable[[Qemu], object], kind: type[VirtainerError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        machine(Qemu(happens)).shutdown(timeout=3600)


def test_a_vm_that_switched_itself_off_is_shut_down() -> None:
    vm = machine(Qemu(lambda qemu: qemu.report(OFF)))
    vm.shutdown()
    with pytest.raises(VMGone, match=r"it was shut down; vm\.start\(\) switches it on"):
        vm.run("true")


def test_a_paused_vm_whose_qemu_ends_has_ended() -> None:
    qemu = Qemu()
    vm = machine(qemu)
    vm.pause()
    with pytest.raises(VMGone, match="it is paused"):
        vm.run("true")
    qemu.end_qemu()
    for use in (
        lambda: vm.run("true"),
        vm.resume,
        lambda: vm.qmp("query-status"),
        lambda: vm.machine.control("screenshot"),
    ):
        with pytest.raises(VMGone, match="vm has ended: QEMU was killed"):
            use()


@pytest.mark.parametrize("kind", [VMGone, GuestPanic])
def test_start_refuses_a_vm_that_has_ended(kind: type[VirtainerError]) -> None:
    def end(qemu: Qemu) -> None:
        if "cont" in qemu.asked[-1]:
            qemu.end_qemu()
            if kind is GuestPanic:
                qemu.panic()

    qemu = Qemu(end)
    with pytest.raises(kind, match=r"vm has ended: QEMU was killed|Kernel panic"):
        machine(qemu).start()
    assert len(qemu.asked) == 2


def test_start_pauses_before_it_asks_qemu_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_RESET_SECONDS", 0.1 / 10)

    def refuse(qemu: Qemu) -> None:
        if "cont" in qemu.asked[-1]:
            qemu.result = 1, b'{"error": {"desc": "Resetting the Virtual Machine is required"}}'

    qemu = Qemu(refuse)
    began = time.monotonic()
    with pytest.raises(VirtainerError, match="QEMU refuses cont: Resetting"):
        machine(qemu).start()
    assert 0.1 < time.monotonic() - began < 50
    assert len(qemu.asked) < 8


def test_an_engine_error_while_the_container_ends_is_an_ended_vm() -> None:
    def fail(qemu: Any) -> None:
        qemu.end()
        raise EngineError("no such container")

    with pytest.raises(VMGone):
        machine(Qemu(fail)).qmp("query-status")
