"""Faults, which end with their block."""

import time
from datetime import UTC, datetime

import pytest

from pytest_virtainers import VM, CommandFailed, VirtainerError, VMFactory
from tests.vm.shapes import SMALL


def test_fill_disk_fills_and_frees_the_disk(session_vm: VM) -> None:
    with session_vm.faults.fill_disk("/var/tmp"):
        full = session_vm.run("head -c 1M /dev/zero >/var/tmp/more", sudo=True, check=False)
        assert "No space left on device" in full.stderr
    session_vm.run("head -c 1M /dev/zero >/var/tmp/more && rm /var/tmp/more", sudo=True)
    with session_vm.faults.fill_disk("/var/tmp", leave="20M"):
        session_vm.run("head -c 5M /dev/zero >/var/tmp/more && rm /var/tmp/more", sudo=True)
    with pytest.raises(CommandFailed, match="No space left"), session_vm.faults.fill_disk("/var/tmp"):
        session_vm.run("head -c 1M /dev/zero >/var/tmp/more", sudo=True)
    assert session_vm.glob("/var/tmp/.virtainer-fill*") == []


def test_an_incomplete_fill_is_undone(session_vm: VM) -> None:
    free = "stat -f -c %f /var/tmp"
    before = int(session_vm.run(free).stdout)
    breaks = '#!/bin/sh\n/usr/bin/fallocate "$@" && touch /run/fell && kill -9 $PPID\n'
    session_vm.write_text("/usr/local/bin/fallocate", breaks, mode=0o755)
    try:
        with pytest.raises(VirtainerError), session_vm.faults.fill_disk("/var/tmp"):
            pytest.fail("it is not full")
    finally:
        session_vm.run("rm /usr/local/bin/fallocate", sudo=True)
    session_vm.run("rm /run/fell", sudo=True)
    assert session_vm.glob("/var/tmp/.virtainer-fill*") == []
    assert int(session_vm.run(free).stdout) > before / 2


def test_set_clock_sets_and_restores_the_time(session_vm: VM) -> None:
    session_vm.run("systemctl start systemd-timesyncd", sudo=True)
    with session_vm.faults.set_time(datetime(2038, 1, 19, 3, 14, tzinfo=UTC)):
        assert session_vm.run("date -u +%F").stdout == "2038-01-19\n"
        assert not session_vm.run("systemctl is-active systemd-timesyncd", check=False)
    before = time.time()
    assert before - 2 < float(session_vm.run("date +%s.%N").stdout) < time.time() + 2
    assert session_vm.run("systemctl is-active systemd-timesyncd").stdout == "active\n"
    session_vm.run("systemctl stop systemd-timesyncd", sudo=True)


def test_block_network_blocks_all_but_ssh(vm_factory: VMFactory) -> None:
    first, second = vm_factory("first", **SMALL), vm_factory("second", **SMALL)
    ping, patient_ping = (["ping", "-c", "1", "-W", seconds, second.ip] for seconds in ("3", "30"))
    first.run(patient_ping)
    with first.faults.block_network():
        assert not first.run(ping, check=False)
        assert not second.run(["ping", "-c", "1", "-W", "3", first.ip], check=False)
        assert not first.run("getent hosts second", check=False)
        assert first.access.ssh_command  # and a new connection works, too
        first.machine.ssh.current.close()  # type: ignore[union-attr]
        assert first.run("echo still").stdout == "still\n"
    first.run(patient_ping)


@pytest.mark.parametrize("limit", [{"iops": 20}, {"bytes_per_second": 100_000}])
def test_slow_disk_throttles_the_disk(session_vm: VM, limit: dict[str, int]) -> None:
    write = "LC_ALL=C dd if=/dev/zero of=/var/tmp/slow bs=4k count=100 oflag=direct conv=notrunc"

    def seconds() -> float:
        """Return the time that the guest measures: on a busy host, starting a command may take seconds."""
        return float(session_vm.run(write).stderr.rpartition(" copied, ")[2].split()[0])

    seconds()
    fast = min(seconds() for _ in range(3))
    with session_vm.faults.slow_disk(**limit):
        assert seconds() > max(2.5, 2 * fast)  # without the fault, it takes a tenth of a second
    assert any(seconds() < 2.5 for _ in range(5))
