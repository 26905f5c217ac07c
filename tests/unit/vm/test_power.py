"""Switching a VM off and on while it ends, panics or hangs; its container answers as QEMU would."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from pytest_virtainers import VMGone
from pytest_virtainers.errors import EngineError, GuestPanic, GuestStalled, QEMUCrashed, VirtainerError
from pytest_virtainers.support.progress import Progress
from pytest_virtainers.vm import power
from tests.unit.vm.fake_container import RUNS, Container, event, machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers import VM

CRASH = "QEMU ended by itself (SIGABRT): Assertion `x' failed"
KILLED = event("over", detail="QEMU was killed (SIGKILL)", crashed=False)
OFF = event("guest-off")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_PAUSE_SECONDS", 0.02)


class Login:
    """A connection to a guest that has booted, without cloud-init."""

    alive = True

    def close(self) -> None:
        self.alive = False

    def execute(self, _text: str, **_streams: object) -> int:
        return 0


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


@pytest.fixture
def notes() -> list[str]:
    return []


def started(qemu: Qemu, notes: list[str], log_in: Callable[[], Login], monkeypatch: pytest.MonkeyPatch) -> VM:
    """Start a machine whose logins are these; return it."""
    vm = machine(qemu)
    vm.machine.progress = Progress(notes.append, live=False)
    monkeypatch.setattr(vm.machine.ssh, "log_in", lambda _seconds: log_in())
    vm.start()
    return vm


def test_a_qemu_that_crashes_while_the_guest_boots_is_noted(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu, logins = Qemu(), iter([None, Login()])

    def log_in() -> Login:
        if login := next(logins):
            return login
        qemu.report(event("boot-crashed", detail=CRASH))
        raise ConnectionRefusedError

    assert started(qemu, notes, log_in, monkeypatch).machine.runs
    assert notes == [f"virtainers: vm: while it booted, {CRASH}. It was started again, once\n"]


def test_a_qemu_that_crashes_again_in_the_boot_is_an_error(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = Qemu()
    again = f"{CRASH} (it crashed 9 s before, too, and was started again)"

    def log_in() -> Login:
        qemu.report(event("boot-crashed", detail=CRASH) + event("over", detail=again, crashed=True))
        raise ConnectionRefusedError

    with pytest.raises(QEMUCrashed, match=r"vm has ended: .* \(it crashed 9 s before, too, and was started again\)"):
        started(qemu, notes, log_in, monkeypatch)
    assert len(notes) == 1
    assert [each for each in qemu.asked if "system_reset" in each] == [qemu.asked[0]]


STALL = b"rcu: \t(detected by 0, t=5252 jiffies, g=12, q=1 ncpus=1)\r\n"


NO_TIMER = b"[    0.05] Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug\r\n"


@pytest.mark.parametrize("hangs", [1, 2])
@pytest.mark.parametrize(("console", "why"), [(STALL * 2, "the guest's kernel hangs"), (NO_TIMER, "Kernel panic")])
def test_a_kernel_that_hangs_while_it_boots_is_reset_once(
    console: bytes, why: str, hangs: int, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu, stalls = Qemu(), iter([console] * hangs)

    def log_in() -> Login:
        if said := next(stalls, b""):
            qemu.stdout += said
            raise ConnectionRefusedError
        return Login()

    if hangs == 1:
        assert started(qemu, notes, log_in, monkeypatch).machine.runs
    else:
        with pytest.raises(GuestStalled, match=f"vm: {why}"):
            started(qemu, notes, log_in, monkeypatch)
    assert notes == ["virtainers: the kernel of vm hung while it booted: resetting it, once\n"]
    assert len([each for each in qemu.asked if "system_reset" in each]) == 2
