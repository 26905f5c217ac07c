"""Switching a machine off and on; each test has its own machine, which is changed."""

import contextlib
import threading
import time
from collections.abc import Iterator

import docker.errors
import pytest

from pytest_virtainers import VM, CommandTimeout, QEMUCrashed, VMFactory, VMGone
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.support.progress import Progress

pytestmark = pytest.mark.virtainer(ram="512M", disk="3G", cpus=2, scope="module")


def boot_id(vm: VM) -> str:
    return vm.run("cat /proc/sys/kernel/random/boot_id").stdout


@pytest.mark.virtainer(scope="function", nics=["side"])
def test_shutdown_and_start_keep_disk_and_cards(vm: VM) -> None:
    before, card = boot_id(vm), vm.nics["side"]
    vm.write_text("/home/debian/kept", "yes")
    vm.shutdown()
    with pytest.raises(VMGone, match=r"vm does not run: it was shut down; vm\.start\(\) switches it on"):
        vm.run("true")
    vm.start()
    assert vm.read_text("/home/debian/kept") == "yes"
    assert boot_id(vm) != before
    assert vm.nics == {"side": card}
    assert card.ip in vm.run(["ip", "addr", "show", "dev", card.device]).stdout
    assert "Power down" in vm.run("journalctl -b -1 -n 30 --no-pager", sudo=True).stdout or vm.run(
        "journalctl -b -1 --no-pager | grep -c 'Reached target.*poweroff.target'", sudo=True
    )


@pytest.mark.thorough  # examples/troubled_service has a power cut
def test_reset_boots_again_and_loses_unwritten_data(vm: VM) -> None:
    before = boot_id(vm)
    vm.run("echo synced >/home/debian/synced; sync; echo lost >/home/debian/lost")
    vm.reset()
    assert boot_id(vm) != before
    assert vm.read_text("/home/debian/synced") == "synced\n"
    assert vm.run("cat /home/debian/lost 2>/dev/null", check=False).stdout == ""
    last = vm.run("journalctl -b -1 -n 5 --no-pager", sudo=True).stdout
    assert "Journal stopped" not in last, "no process could write that"
    log = vm.run("journalctl -b 0 --no-pager", sudo=True).stdout
    assert "corrupted or uncleanly shut down" in log or "recovery complete" in log or "recovering journal" in log


def test_no_time_passes_while_paused(vm: VM) -> None:
    uptime = float(vm.run("cut -d' ' -f1 /proc/uptime").stdout)
    vm.pause()
    time.sleep(15)
    vm.resume()
    assert float(vm.run("cut -d' ' -f1 /proc/uptime").stdout) - uptime < 12


@pytest.mark.thorough
def test_a_guest_that_switched_itself_off_can_be_started(vm: VM) -> None:
    with pytest.raises(VMGone, match="vm has ended: the guest switched itself off"):
        vm.run("systemctl poweroff; sleep 600", sudo=True)
    vm.start()
    assert vm.run("echo back").stdout == "back\n"


def test_a_snapshot_restores_a_machine_that_is_off(vm: VM) -> None:
    vm.run("echo before >/tmp/file")
    snapshot = vm.snapshot()
    vm.shutdown()
    vm.restore(snapshot)
    assert vm.run("cat /tmp/file").stdout == "before\n"


def test_a_kill_during_shutdown_is_reported(vm_factory: VMFactory, engine: DockerEngine) -> None:
    victim = vm_factory("victim")
    threading.Timer(0.5, engine.api.kill, (victim.machine.container.id,)).start()
    with pytest.raises(VMGone, match=r"victim has ended: .*The last lines of its console:"):
        victim.shutdown()


# Signals QEMU as its own user, because a container's root may not.
SIGNAL = """
for each in /proc/[0-9]*; do
    case $(tr '\\0' ' ' <$each/cmdline) in *qemu-[s]ystem*) kill -$1 ${each#/proc/} && echo done ;; esac
done 2>/dev/null
"""


def signal_qemu(vm: VM, engine: DockerEngine, name: str) -> None:
    command = ["sh", "-c", SIGNAL, "sh", name]
    session = engine.api.exec_create(vm.machine.container.id, command, user="qemu")["Id"]
    if name == "KILL":  # the container ends with QEMU, so the answer may be lost
        engine.api.exec_start(session, detach=True)
    else:
        assert engine.api.exec_start(session) == b"done\n"


def test_timeouts_apply_while_qemu_is_stopped(vm: VM, engine: DockerEngine) -> None:
    began = time.monotonic()
    signal_qemu(vm, engine, "STOP")
    with pytest.raises(CommandTimeout):
        vm.run("true", timeout=3)
    assert time.monotonic() - began < 45
    signal_qemu(vm, engine, "CONT")
    assert vm.run("echo on").stdout == "on\n"


def test_a_stopped_qemu_can_be_closed(vm_factory: VMFactory, engine: DockerEngine) -> None:
    still = vm_factory("still")
    container = still.machine.container.id
    signal_qemu(still, engine, "STOP")
    began = time.monotonic()
    still.machine.close()
    assert time.monotonic() - began < 60
    with pytest.raises(docker.errors.NotFound):
        engine.api.inspect_container(container)


# What a QEMU that is started again finds as it was, or as the one before has left it.
INSIDE = """
nft list ruleset 2>/dev/null
ip -brief address
for each in /proc/[0-9]*; do cat $each/comm; done 2>/dev/null | grep -Ec 'dnsmasq|virtainer|^vm$'
"""
OPEN = "ls /proc/1/fd | wc -l; cat /proc/net/unix /proc/net/tcp /proc/net/udp | wc -l"


def inside(vm: VM, engine: DockerEngine, script: str) -> str:
    session = engine.api.exec_create(vm.machine.container.id, ["sh", "-c", script])["Id"]
    return bytes(engine.api.exec_start(session)).decode()


@contextlib.contextmanager
def qemu_crashes_in_boots(vm: VM, engine: DockerEngine, boots: int = 1) -> Iterator[None]:
    """Let QEMU abort soon after the kernel has started, in each of the next boots."""

    def crash() -> None:
        position = vm.console.position
        for _ in range(boots):
            search = vm.console.search("Linux version", position)
            while not search.look():
                time.sleep(0.2)
            position = search.end
            signal_qemu(vm, engine, "ABRT")

    thread = threading.Thread(target=crash)
    thread.start()
    yield
    thread.join()


@pytest.mark.virtainer(scope="function")
@pytest.mark.parametrize("how", ["reset", pytest.param("reboot", marks=pytest.mark.thorough)])
def test_a_qemu_that_crashes_while_the_guest_boots_is_started_again(vm: VM, engine: DockerEngine, how: str) -> None:
    vm.run("echo kept >/home/debian/kept; sync")
    notes: list[str] = []
    vm.machine.progress = Progress(notes.append, live=False)
    before, parts, opened = boot_id(vm), inside(vm, engine, INSIDE), inside(vm, engine, OPEN)
    with qemu_crashes_in_boots(vm, engine):
        getattr(vm, how)()
    assert boot_id(vm) != before
    assert vm.read_text("/home/debian/kept") == "kept\n"
    crash = "QEMU ended by itself (SIGABRT): without a message"
    assert f"virtainers: vm: while it booted, {crash}. It was started again, once\n" in notes
    assert (
        f"QEMU crashed while the guest booted, starting it again, once: {crash}" in vm.machine.health.supervisor.words
    )
    assert inside(vm, engine, INSIDE) == parts
    for now, then in zip(inside(vm, engine, OPEN).split(), opened.split(), strict=True):
        assert int(now) <= int(then), "nothing is open twice"
    signal_qemu(vm, engine, "ABRT")
    with pytest.raises(QEMUCrashed, match=r"vm has ended: .*\(it crashed \d+ s before, too, and was started again\)"):
        vm.run("sleep 60")


@pytest.mark.thorough
@pytest.mark.virtainer(scope="function")
def test_a_qemu_that_crashes_twice_in_a_boot_is_an_error(vm: VM, engine: DockerEngine) -> None:
    with (
        qemu_crashes_in_boots(vm, engine, 2),
        pytest.raises(QEMUCrashed, match=r"\(it crashed \d+ s before, too, and was started again\)"),
    ):
        vm.reset()


@pytest.mark.thorough
@pytest.mark.virtainer(scope="function")
def test_a_qemu_that_crashes_long_after_the_boot_is_an_error(vm: VM, engine: DockerEngine) -> None:
    vm.reset()
    time.sleep(60)
    signal_qemu(vm, engine, "ABRT")
    with pytest.raises(QEMUCrashed, match=r"vm has ended: QEMU ended by itself \(SIGABRT\): without a message\."):
        vm.run("sleep 60")


def test_a_qemu_that_is_killed_is_named(vm_factory: VMFactory, engine: DockerEngine) -> None:
    victim = vm_factory("victim")
    threading.Timer(0.5, signal_qemu, (victim, engine, "KILL")).start()
    with pytest.raises(
        VMGone, match=r"victim has ended: .*QEMU was killed \(SIGKILL\): has the container too little"
    ):
        victim.run("sleep 60")


def test_a_qemu_without_memory_is_named(vm_factory: VMFactory, engine: DockerEngine) -> None:
    victim = vm_factory("victim")
    least = f"{engine.memory_used_mib(victim.machine.container.id) + 60}m"
    engine.api.update_container(victim.machine.container.id, mem_limit=least, memswap_limit=least)
    with pytest.raises(
        VMGone, match=r"victim has ended: .*QEMU was killed \(SIGKILL\): has the container too little"
    ):
        victim.run("head -c 300M /dev/zero | tail", sudo=True)


def test_a_machine_whose_qemu_quit_has_ended(vm_factory: VMFactory) -> None:
    empty = vm_factory("empty")
    with contextlib.suppress(VMGone):  # the container ends with QEMU, so the answer may be lost
        empty.qmp("quit")
    for use in (lambda: empty.qmp("query-status"), empty.start, empty.shutdown):
        with pytest.raises(VMGone, match=r"empty has ended: .*The last lines of its console:"):
            use()
