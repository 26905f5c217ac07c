"""The SSH connection of a VM whose container only produces output: breaks, reconnecting, and why a VM ended."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers.errors import (
    BadTemplate,
    DiskFull,
    GuestPanic,
    QEMUCrashed,
    SSHError,
    VirtainerError,
    VMGone,
)
from pytest_virtainers.ssh import client
from pytest_virtainers.vm import connection as module
from pytest_virtainers.vm.vm import VM
from tests.unit.vm.fake_container import RUNS, Container, event, machine

DISK_FAILED = event("disk-failed", cause="no space left in IMAGE_DIR")
CRASH = "QEMU ended by itself (SIGABRT): Assertion `x' failed"
CRASHED = event("end", reason="qemu-failed", detail=CRASH, crashed=True)
BROKEN = "the template /store/templates/abc does not restore: Invalid argument"
BAD_TEMPLATE = event("end", reason="bad-template", detail=BROKEN, crashed=False)
S1 = {"name": "s1", "date-sec": 0, "date-nsec": 0}
OUT_OF_MEMORY = event("end", reason="qemu-failed", detail="QEMU was killed (SIGKILL)", crashed=False)


@pytest.mark.parametrize(
    ("container", "kind", "words"),
    [
        (
            Container(RUNS, DISK_FAILED),
            DiskFull,
            "vm: QEMU has paused the VM, as its disk could not be written: no space left in IMAGE_DIR. "
            "Free space on the engine's disk, or let the VM write less",
        ),
        (
            Container(BAD_TEMPLATE, ended=True),
            BadTemplate,
            "vm has ended: virtainer: end: bad-template: the template /store/templates/abc does not restore: "
            "Invalid argument. The last lines of its console:\n  | login: ",
        ),
        (
            Container(CRASHED, ended=True),
            QEMUCrashed,
            "vm has ended: virtainer: end: qemu-failed: QEMU ended by itself (SIGABRT): Assertion `x' failed. "
            "The last lines of its console:\n  | login: ",
        ),
        (
            Container(RUNS, DISK_FAILED, OUT_OF_MEMORY, ended=True),
            VMGone,
            "vm has ended: virtainer: end: qemu-failed: QEMU was killed (SIGKILL). "
            "The last lines of its console:\n  | login: ",
        ),
        (
            Container(console=b"", ended=True),
            VMGone,
            "vm has ended: its container printed nothing. The last lines of its console:\n  | (the console is empty)",
        ),
        (
            Container(console=b"Kernel panic - not syncing: so\r\n", ended=True),
            GuestPanic,
            "vm: Kernel panic - not syncing: so. The last lines of its console:\n  | Kernel panic - not syncing: so",
        ),
    ],
    ids=["disk full", "bad template", "crashed", "ended", "silent", "panic"],
)
def test_the_error_has_the_reason_why_a_vm_does_not_run(
    container: Container, kind: type[VirtainerError], words: str
) -> None:
    with pytest.raises(VirtainerError) as caught:
        machine(container).run("true")
    assert (type(caught.value), str(caught.value)) == (kind, words)


def test_restore_forgets_the_panic_of_the_kernel_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    container = Container(RUNS, console=b"Kernel panic - not syncing: so\r\n")
    vm = machine(container)

    def run(command: list[str]) -> tuple[int, bytes]:
        if command[0] == "snapshot":
            container.stdout += b"---[ end Kernel panic - not syncing: so ]---\r\n"
            return 0, b""
        return 0, json.dumps({"return": [{"node-name": "disk", "image": {"snapshots": [S1]}}]}).encode()

    monkeypatch.setattr(container, "run", run, raising=False)
    monkeypatch.setattr(vm.machine.ssh, "establish", lambda *_, **__: vm.machine.health.check_alive())
    vm.restore("s1")
    assert vm.machine.runs


class Connection:
    """Each command gets the next of these exit codes, or breaks the connection, when so many run at the same time."""

    def __init__(self, *codes: int | Exception, together: int = 1) -> None:
        self._codes = list(codes)
        self._all_there = threading.Barrier(together)
        self.closed, self.alive, self.stale = False, True, ""
        self.transport: object = None

    def execute(self, _command: str, **_: object) -> int:
        self._all_there.wait(60)
        code = self._codes.pop(0)
        if isinstance(code, Exception):
            raise code
        return code

    def close(self) -> None:
        self.closed = True


def connected(connection: Any) -> VM:
    vm = machine(Container(RUNS))
    vm.machine.ssh.current = connection
    return vm


BROKE = SSHError("the SSH connection broke while 'x' ran")


def reconnecting(monkeypatch: pytest.MonkeyPatch, connection: Connection) -> tuple[Any, list[Connection]]:
    """Return a VM that takes a moment to connect again, and the connections that it makes."""
    vm, made = connected(connection), list[Connection]()

    def connect(_seconds: float) -> Connection:
        time.sleep(0.1)
        made.append(Connection())
        return made[-1]

    monkeypatch.setattr(vm.machine.ssh, "log_in", connect)
    return vm, made


def test_threads_that_find_a_broken_connection_reconnect_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Connection()
    broken.alive = False
    vm, made = reconnecting(monkeypatch, broken)
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda _: vm.machine.ssh.connected(), range(4)))
    assert given == made * 4
    assert not made[0].closed


def test_several_commands_on_a_connection_that_breaks_reconnect_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, made = reconnecting(monkeypatch, Connection(*[BROKE] * 4, together=4))
    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(vm.run, "x") for _ in range(4)]:
            with pytest.raises(SSHError, match="the SSH connection broke while 'x' ran"):
                each.result()
    assert made == [vm.machine.ssh.current]


class Silent:
    """A direct connection with a silent guest until this side closes it; commands may have started."""

    peer, alive, stale = "10.0.0.2", True, ""

    def __init__(self, *, starts: bool) -> None:
        self._starts = starts

    def execute(self, _command: str, *, check: Any, started: Any, **_: object) -> int:
        if self._starts:
            started()
        deadline = time.monotonic() + 60
        while self.alive:
            assert time.monotonic() < deadline
            check()
            time.sleep(0.01)
        raise BROKE

    def answers(self, _seconds: float) -> bool:
        return False

    def close(self) -> None:
        self.alive = False


def disconnected(monkeypatch: pytest.MonkeyPatch, connection: Silent, *, now: str = "") -> tuple[VM, Connection]:
    """Return a VM whose container lost its network, and the connection that it makes next."""
    monkeypatch.setattr(module, "_FIRST_KEEPALIVE_SECONDS", 0.0)
    monkeypatch.setattr(module, "_STALE_SECONDS", 0.05)
    vm, through_engine = connected(connection), Connection(0)
    monkeypatch.setattr(vm.machine, "endpoint", SimpleNamespace(address=now, leads_to=lambda address: address == now))
    monkeypatch.setattr(vm.machine, "network", SimpleNamespace(label="front", engine_name="run-front"))
    monkeypatch.setattr(vm.machine.ssh, "log_in", lambda _seconds: through_engine)
    return vm, through_engine


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ("", "its container was disconnected from network front (run-front)"),
        ("10.0.0.9", "its container has another address on network front (run-front): 10.0.0.9"),
    ],
)
def test_a_disconnected_network_is_reported(monkeypatch: pytest.MonkeyPatch, now: str, words: str) -> None:
    vm, through_engine = disconnected(monkeypatch, Silent(starts=True), now=now)
    with pytest.raises(SSHError) as caught:
        vm.run("x")
    assert str(caught.value) == (
        f"vm: {words}; the SSH connection broke while 'x' ran, and it may still run. The next command goes through "
        "the engine, or to the new address"
    )
    assert vm.run("x").ok
    assert vm.machine.ssh.current is through_engine  # type: ignore[comparison-overlap]


def test_a_command_that_has_not_started_is_sent_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, through_engine = disconnected(monkeypatch, Silent(starts=False))
    assert vm.run("x").ok
    assert vm.machine.ssh.current is through_engine  # type: ignore[comparison-overlap]


def test_a_thread_that_waits_for_another_to_connect_sees_the_vm_end(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Connection()
    broken.alive = False
    vm, made = reconnecting(monkeypatch, broken)
    connects, ends = threading.Event(), threading.Event()

    def log_in(_seconds: float) -> client.Connection:
        connects.set()
        ends.wait(60)
        raise ConnectionRefusedError

    def connect() -> None:
        with contextlib.suppress(VMGone):
            vm.machine.ssh.establish("connecting", 60, log_in=log_in)

    threading.Thread(target=connect, daemon=True).start()
    assert connects.wait(60)
    threading.Timer(0.1, lambda: setattr(vm.machine.container, "ended", True)).start()
    with pytest.raises(VMGone):
        vm.machine.ssh.connected()
    ends.set()
    assert made == []


def test_a_guest_that_is_slow_to_end_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its console shows lines while it refuses connections; then it ends, and the error says so."""
    vm = connected(Connection(BROKE))
    container: Any = vm.machine.container
    monkeypatch.setattr(vm.machine, "scaled", lambda _seconds: 1.0)
    tries = 0

    def refuse(_seconds: float) -> None:
        nonlocal tries
        tries += 1
        time.sleep(0.15)
        container.stdout += b"a unit is stopping\r\n"
        container.ended = tries == 10
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(vm.machine.ssh, "log_in", refuse)
    with pytest.raises(VMGone, match=r"^vm has ended: "):
        vm.run("poweroff")
    assert tries == 10


def test_the_error_has_the_reason_why_reconnecting_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BREAK_SECONDS", 0.01)
    connection = Connection(BROKE)
    vm = connected(connection)

    def refuse(_seconds: float) -> None:
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(vm.machine.ssh, "log_in", refuse)
    with pytest.raises(SSHError) as caught:
        vm.run("x")
    assert str(caught.value) == (
        "vm: the SSH connection broke while 'x' ran; a new connection was tried, and met: Connection refused. "
        "The last lines of its console:\n  | login: "
    )
    connection.alive = False
    monkeypatch.setattr(vm.machine, "scaled", lambda _seconds: 0.1)
    with pytest.raises(
        SSHError, match=r"did not let us log in over SSH .* The last try: Connection refused"
    ) as caught:
        vm.run("x")
    assert str(caught.value).endswith("  | login: "), "no hint about slow boots"
