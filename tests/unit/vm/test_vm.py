"""The handle of a VM whose container only says things."""

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from virtainer.ending import End, Reason

from pytest_virtainers.errors import (
    BadTemplate,
    DiskFull,
    GuestPanic,
    QEMUCrashed,
    SSHError,
    VirtainerError,
    VMGone,
)
from pytest_virtainers.ssh import client, resumable
from pytest_virtainers.vm import core
from pytest_virtainers.vm.saving import Snapshot
from pytest_virtainers.vm.vm import VM
from tests.unit.vm.fake_container import RUNS, Container, machine

DISK_FAILED = "guest paused, its disk failed: no space left in IMAGE_DIR. Mend it, then: docker exec CONTAINER qmp …"
CRASHED = "end: qemu-failed: QEMU ended by itself (SIGABRT): Assertion `x' failed"
BAD_TEMPLATE = End(Reason.TEMPLATE, "the template /store/templates/abc does not restore: Invalid argument").line
OUT_OF_MEMORY = End(Reason.QEMU, "QEMU was killed (SIGKILL)").line


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
            "vm has ended: its container said nothing. The last lines of its console:\n  | (the console is empty)",
        ),
        (
            Container(console=b"Kernel panic - not syncing: so\r\n", ended=True),
            GuestPanic,
            "vm: Kernel panic - not syncing: so. The last lines of its console:\n  | Kernel panic - not syncing: so",
        ),
    ],
    ids=["disk full", "bad template", "crashed", "ended", "silent", "panic"],
)
def test_a_machine_that_cannot_go_on_says_why(container: Container, kind: type[VirtainerError], words: str) -> None:
    with pytest.raises(VirtainerError) as caught:
        machine(container).run("true")
    assert (type(caught.value), str(caught.value)) == (kind, words)


def test_what_a_panicking_kernel_says_until_it_goes_back_in_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    container = Container(RUNS, console=b"Kernel panic - not syncing: so\r\n")
    vm = machine(container)

    def load(*_: object) -> None:
        container.stdout += b"---[ end Kernel panic - not syncing: so ]---\r\n"

    monkeypatch.setattr(vm, "_in_place", load)
    monkeypatch.setattr(vm, "_wait", lambda *_, **__: vm._check_alive())
    monkeypatch.setattr(vm, "snapshots", lambda: ["s1"])
    vm.restore(Snapshot(vm, "s1"))
    assert vm.runs


class Connection:
    """Each command ends with the next of these exit codes, or breaks the connection, when so many are under way."""

    def __init__(self, *codes: int | Exception, together: int = 1) -> None:
        self._codes = list(codes)
        self._all_there = threading.Barrier(together)
        self.closed, self.alive, self.astray = False, True, ""
        self.transport: object = None

    def execute(self, _command: str, **_: object) -> int:
        self._all_there.wait(10)
        code = self._codes.pop(0)
        if isinstance(code, Exception):
            raise code
        return code

    def close(self) -> None:
        self.closed = True


def connected(connection: Any) -> VM:
    vm = machine(Container(RUNS))
    vm._connection = connection
    return vm


def test_a_guest_without_the_port_serves_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code = subprocess.run(["sh", "-c", resumable.SERVE], capture_output=True, check=False).returncode
    assert code != 0
    monkeypatch.delattr(client, "log_in")
    assert connected(Connection(code))._open_line() is None


def test_a_line_that_breaks_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    over_line = Connection(SSHError("'true' could not be started over SSH"))
    monkeypatch.setattr(client, "log_in", lambda *_: over_line)
    assert connected(Connection(0))._open_line() is None
    assert over_line.closed


BROKE = SSHError("the SSH connection broke while 'x' ran")


def reconnecting(monkeypatch: pytest.MonkeyPatch, connection: Connection) -> tuple[Any, list[Connection]]:
    """Give a machine that takes a moment to connect again, and the connections that it has made."""
    vm, made = connected(connection), list[Connection]()

    def connect(_seconds: float) -> Connection:
        time.sleep(0.1)
        made.append(Connection())
        return made[-1]

    monkeypatch.setattr(vm, "_connect", connect)
    return vm, made


def test_a_broken_connection_is_made_anew_once_by_all_who_find_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Connection()
    broken.alive = False
    vm, made = reconnecting(monkeypatch, broken)
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda _: vm._connected(), range(4)))
    assert given == made * 4
    assert not made[0].closed


def test_a_connection_that_breaks_under_several_commands_is_made_anew_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, made = reconnecting(monkeypatch, Connection(*[BROKE] * 4, together=4))
    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(vm.run, "x") for _ in range(4)]:
            with pytest.raises(SSHError, match="the SSH connection broke while 'x' ran"):
                each.result()
    assert made == [vm._connection]


class Silent:
    """A direct connection on which the guest's side is silent, until we close it; commands may have started."""

    peer, alive, astray = "10.0.0.2", True, ""

    def __init__(self, *, starts: bool) -> None:
        self._starts = starts

    def execute(self, _command: str, *, check: Any, started: Any, **_: object) -> int:
        if self._starts:
            started()
        deadline = time.monotonic() + 10
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
    """Give a machine whose container has lost its network, and the connection that it makes next."""
    monkeypatch.setattr(core, "_FIRST_PULSE_SECONDS", 0.0)
    monkeypatch.setattr(core, "_ASTRAY_SECONDS", 0.05)
    vm, through_engine = connected(connection), Connection(0)
    monkeypatch.setattr(vm, "endpoint", SimpleNamespace(address=now, leads_to=lambda address: address == now))
    monkeypatch.setattr(vm, "network", SimpleNamespace(label="front", engine_name="run-front"))
    monkeypatch.setattr(vm, "_connect", lambda _seconds: through_engine)
    return vm, through_engine


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ("", "its container was disconnected from network front (run-front)"),
        ("10.0.0.9", "its container has another address on network front (run-front): 10.0.0.9"),
    ],
)
def test_a_command_under_which_its_network_goes_says_so(
    monkeypatch: pytest.MonkeyPatch, now: str, words: str
) -> None:
    vm, through_engine = disconnected(monkeypatch, Silent(starts=True), now=now)
    with pytest.raises(SSHError) as caught:
        vm.run("x")
    assert str(caught.value) == (
        f"vm: {words}; the SSH connection broke while 'x' ran, and it may still run. The next command goes through "
        "the engine, or to the new address"
    )
    assert vm.run("x").ok
    assert vm._connection is through_engine  # type: ignore[comparison-overlap]


def test_a_command_that_was_not_started_goes_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, through_engine = disconnected(monkeypatch, Silent(starts=False))
    assert vm.run("x").ok
    assert vm._connection is through_engine  # type: ignore[comparison-overlap]


def test_who_waits_for_another_to_connect_sees_the_machine_end(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Connection()
    broken.alive = False
    vm, made = reconnecting(monkeypatch, broken)
    ends = threading.Event()
    threading.Thread(target=lambda: (vm._take_turn(), ends.wait(10)), daemon=True).start()
    threading.Timer(0.1, lambda: setattr(vm.container, "ended", True)).start()
    with pytest.raises(VMGone):
        vm._connected()
    ends.set()
    assert made == []


def test_a_guest_that_is_slow_to_end_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its console goes on while no connection is let in; then it ends, and that is what is told."""
    vm = connected(Connection(BROKE))
    container: Any = vm.container
    monkeypatch.setattr(vm, "scaled", lambda _seconds: 0.15)
    tries = 0

    def refuse(_seconds: float) -> None:
        nonlocal tries
        tries += 1
        time.sleep(0.03)
        container.stdout += b"a unit is stopping\r\n"
        container.ended = tries == 10
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(vm, "_connect", refuse)
    with pytest.raises(VMGone, match=r"^vm has ended: "):
        vm.run("poweroff")
    assert tries == 10


def test_a_new_connection_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_BREAK_SECONDS", 0.01)
    connection = Connection(BROKE)
    vm = connected(connection)

    def refuse(_seconds: float) -> None:
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(vm, "_connect", refuse)
    with pytest.raises(SSHError) as caught:
        vm.run("x")
    assert str(caught.value) == (
        "vm: the SSH connection broke while 'x' ran; a new connection was tried, and met: Connection refused. "
        "The last lines of its console:\n  | login: "
    )
    connection.alive = False
    monkeypatch.setattr(vm, "scaled", lambda _seconds: 0.1)
    with pytest.raises(
        SSHError, match=r"did not let us log in over SSH .* The last try: Connection refused"
    ) as caught:
        vm.run("x")
    assert str(caught.value).endswith("  | login: "), "and nothing of slow boots"
