"""Templates whose clones do not become ready."""

from dataclasses import replace

import pytest

from pytest_virtainers.errors import BadTemplate, BootTimeout, SSHError, StoreError, VirtainerError
from pytest_virtainers.store.access import Removed
from pytest_virtainers.vm.vm import VM
from tests.unit.launching.world import CLONE, GUEST, TEMPLATE, FakeContainer, World

TRY_AGAIN = "virtainers: a clone of debian-13 did not become ready, trying again: {}\n"
MADE_AGAIN = "virtainers: a template of debian-13 does not restore and is made again: {}\n"


def clone(world: World, *failures: VirtainerError) -> VM:
    """Clone; the first tries fail with these errors."""
    world.fates = [*failures]
    return world.launch(CLONE)


def is_clone(vm: VM) -> bool:
    return "TEMPLATE" in vm.machine.container.environment


def test_a_template_removed_before_its_clone_starts_is_bad(world: World) -> None:
    def start(container: FakeContainer) -> None:
        raise Removed("templates/abc is no longer in the store: it was removed just now")

    world.on_start = start
    guest = replace(GUEST, key="the same disk by another name")
    with pytest.raises(BadTemplate, match=r"^vm: templates/abc is no longer in the store: it was removed just now$"):
        world.bring_up.clone(CLONE, guest, TEMPLATE, "a-test")
    places = [each.target for each in world.containers[0].plan.binds]
    assert places == ["/store/templates/abc", "/store/guests/debian-13-abc"], "its guest image, not the requested one"


def test_a_bad_template_is_made_again_at_once(world: World) -> None:
    assert is_clone(clone(world, BadTemplate("vm has ended: another QEMU.\nIts console:")))
    assert world.templates.condemned == [True]
    assert world.notes == [MADE_AGAIN.format("vm has ended: another QEMU.")]


@pytest.mark.parametrize("failure", [BootTimeout("too slow"), SSHError("vm shows another SSH host key")])
def test_a_failed_clone_is_retried_with_the_template_now_in_the_store(world: World, failure: VirtainerError) -> None:
    assert clone(world, failure).machine.keys == world.templates.given[1].keys
    assert world.templates.condemned == [False]
    assert len(world.templates.given) == 2
    assert world.notes == [TRY_AGAIN.format(failure)]


def test_a_template_used_by_a_detached_vm_is_not_removed(world: World) -> None:
    world.in_use = {TEMPLATE.place}
    assert not is_clone(clone(world, BadTemplate("another QEMU")))
    assert world.templates.condemned == []
    assert "a detached VM has its disk on it: vm is booted instead: another QEMU" in world.notes[0]


def test_two_failed_clones_replace_their_template(world: World) -> None:
    assert is_clone(clone(world, BootTimeout("too slow"), SSHError("broken")))
    assert world.templates.condemned == [False, True]
    assert world.notes == [TRY_AGAIN.format("too slow"), MADE_AGAIN.format("broken")]


def test_a_template_that_another_process_replaced_is_not_bad(world: World) -> None:
    world.templates.others_replaced_it = True
    assert is_clone(clone(world, BadTemplate("damaged")))
    assert world.notes == [TRY_AGAIN.format("damaged")]


def test_the_third_failure_is_raised(world: World) -> None:
    with pytest.raises(SSHError, match="third"):
        clone(world, BootTimeout("first"), BadTemplate("second"), SSHError("third"), SSHError("fourth"))
    assert world.templates.condemned == [False, True]


def test_errors_of_other_causes_are_raised_at_once(world: World) -> None:
    with pytest.raises(StoreError, match="no space left"):
        clone(world, StoreError("no space left"))
    assert world.templates.condemned == []
    assert world.notes == []


def test_a_shape_that_cannot_be_cloned_is_booted(world: World) -> None:
    world.templates.make = lambda _spec, _maker: replace(TEMPLATE, refusal="no python3")
    assert not is_clone(clone(world))
    assert world.notes == ["virtainers: VMs of debian-13 are booted, not cloned: no python3\n"]


def test_a_failed_clone_ahead_is_not_an_error(world: World) -> None:
    assert world.clones.ahead(CLONE, "a-test") is None, "there is no template yet"
    world.templates.given.append(TEMPLATE)
    world.fates = [BootTimeout("too slow")]
    assert world.clones.ahead(CLONE, "a-test") is None
    assert (world.events, world.failed.vms) == (["start 1", "end 1"], [])
    assert world.clones.ahead(CLONE, "a-test") is not None
