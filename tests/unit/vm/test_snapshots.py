"""Snapshots by their objects and by their names; QEMU has one, `s1`."""

import json

import pytest
from typing_extensions import override

from pytest_virtainers import VM, SnapshotError, UsageError
from pytest_virtainers.vm.snapshots import Snapshot, free_name
from tests.unit.vm.fake_container import RUNS, Container, machine

DISK = {"node-name": "disk", "image": {"snapshots": [{"name": "s1", "date-sec": 0, "date-nsec": 0}]}}


class Qemu(Container):
    """Records the actions on snapshots."""

    def __init__(self) -> None:
        super().__init__(RUNS)
        self.asked: list[list[str]] = []

    @override
    def reply(self, command: list[str]) -> tuple[int, bytes]:
        if command[0] == "qmp":
            return 0, json.dumps({"return": [DISK]}).encode()
        self.asked.append(command)
        return 0, b""


@pytest.fixture
def qemu() -> Qemu:
    return Qemu()


@pytest.fixture
def vm(qemu: Qemu) -> VM:
    return machine(qemu, name="web")


def test_a_snapshot_is_deleted_by_its_name(vm: VM, qemu: Qemu) -> None:
    vm.delete_snapshot(vm.snapshots()[0])
    assert qemu.asked == [["snapshot", "delete", "s1"]]


@pytest.mark.parametrize("use", [VM.restore, VM.delete_snapshot])
def test_a_snapshot_of_another_vm_is_refused(vm: VM, qemu: Qemu, use: object) -> None:
    other = Snapshot("s1", machine(Qemu(), name="db").machine)
    with pytest.raises(UsageError, match=r"^web: s1 is a snapshot of another VM, db$"):
        use(vm, other)  # type: ignore[operator]
    assert qemu.asked == []


@pytest.mark.parametrize("use", [VM.restore, VM.delete_snapshot])
def test_a_name_without_a_snapshot_is_refused(vm: VM, qemu: Qemu, use: object) -> None:
    with pytest.raises(UsageError, match=r"^web has no snapshot clean; it has s1$"):
        use(vm, "clean")  # type: ignore[operator]
    assert qemu.asked == []


def test_restore_refuses_missing_nics(vm: VM, qemu: Qemu) -> None:
    snapshot = Snapshot("s1", vm.machine, nic_names=frozenset({"nic1"}))
    with pytest.raises(SnapshotError, match=r"^web: cannot restore s1: network cards were removed since: nic1\."):
        vm.restore(snapshot)
    assert qemu.asked == []


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "../s1"])
def test_names_of_snapshots_are_checked(vm: VM, name: str) -> None:
    with pytest.raises(UsageError, match="a snapshot's name has letters, digits, - and _, 64 at most"):
        vm.snapshot(name)


def test_free_name_is_the_first_that_is_not_taken() -> None:
    assert [free_name(taken) for taken in ((), ("s1", "s3"), ("clean",))] == ["s1", "s2", "s1"]
