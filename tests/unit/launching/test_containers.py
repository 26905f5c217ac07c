"""Containers of VMs on a host without KVM."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_virtainers.errors import EngineError
from pytest_virtainers.launching.bring_up import SavedVM
from pytest_virtainers.ssh.keys import KeyPair, Keys
from pytest_virtainers.support.runtime_modules import protocol
from tests.unit.launching.world import BOOT, GUEST, FakeContainer, World


@pytest.fixture
def without_kvm(world: World) -> World:
    def start(container: FakeContainer) -> None:
        if "/dev/kvm" in container.plan.devices:
            raise EngineError("no such file or directory: /dev/kvm")

    world.on_start = start
    return world


def test_vms_that_start_together_all_fall_back_to_emulation(without_kvm: World) -> None:
    """All are refused before the first of them decides to do without KVM."""
    world, refused, start = without_kvm, threading.Barrier(3), without_kvm.on_start

    def start_together(container: FakeContainer) -> None:
        try:
            start(container)
        except EngineError:
            refused.wait(10)
            raise

    world.on_start = start_together
    with ThreadPoolExecutor(3) as pool:
        started = [pool.submit(world.launcher.containers.start, BOOT, [GUEST.place], {}, "a-test") for _ in range(3)]
        for each in started:
            each.result()
    assert sorted("/dev/kvm" in each.plan.devices for each in world.containers) == [False] * 3 + [True] * 3
    assert all("/dev/kvm" not in each.plan.devices for each in world.containers if not each.gone.is_set())


def test_the_disk_of_a_saved_vm_is_complete_without_kvm(without_kvm: World) -> None:
    pair = KeyPair("", "")
    without_kvm.launcher.start_saved(
        SavedVM(
            BOOT,
            guest=GUEST,
            user="debian",
            keys=Keys(pair, pair),
            environment={},
            disk=lambda: iter([b"a whole ", b"disk"]),
            seed_iso=b"",
        )
    )
    assert ["/dev/kvm" in each.plan.devices for each in without_kvm.containers] == [True, False]
    assert without_kvm.containers[-1].unpacked == {protocol.IMAGE_DIR: b"a whole disk"}
