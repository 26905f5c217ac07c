"""Tests that destroy their machine, without consequences for the next test."""

import pytest

from pytest_virtainers import VM

pytestmark = pytest.mark.virtainer("counter", ram="512M", disk="3G")


@pytest.mark.parametrize("attempt", [1, 2])
def test_every_test_has_the_prepared_state(vm: VM, attempt: int) -> None:
    assert vm.run("counter", sudo=True).stdout == "2\n"


def test_a_lost_state_is_recreated(vm: VM) -> None:
    vm.run("rm -rf /var/lib/*", sudo=True)
    assert vm.run("counter", sudo=True).stdout == "1\n"


def test_a_test_can_restore_a_snapshot(vm: VM) -> None:
    start = vm.snapshot()
    for _ in range(3):
        vm.run("counter", sudo=True)
    vm.restore(start)
    assert vm.run("counter", sudo=True).stdout == "2\n"
