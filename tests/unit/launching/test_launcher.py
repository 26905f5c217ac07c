"""What a launcher retries, and what it prefetches."""

from dataclasses import replace
from typing import Any

import pytest

from pytest_virtainers.config.spec import Spec, check, merge
from pytest_virtainers.errors import GuestStalled, VirtainerError, VMGone
from pytest_virtainers.launching.templates import Maker, Template
from pytest_virtainers.store.access import Removed
from tests.unit.launching.world import BASE, BOOT, CLONE, GUEST, TEMPLATE, FakeContainer, World, number


@pytest.mark.parametrize(
    ("arguments", "is_prefetched"),
    [
        ({}, True),
        ({"ip": "172.30.0.9", "network": {"name": "n", "mode": "routed", "subnet": "172.30.0.0/24"}}, False),
        ({"network": {"name": "n", "mode": "existing", "source": "theirs"}}, False),
    ],
)
def test_addresses_and_networks_of_others_are_not_prefetched(
    world: World, arguments: dict[str, Any], is_prefetched: bool
) -> None:
    world.templates.given.append(TEMPLATE)
    world.launcher.prefetch(merge(BASE, check(arguments, "a test")), "test_x")
    world.launcher.close()
    assert world.events == (["start 1", "end 1"] if is_prefetched else [])


def test_launch_returns_the_prefetched_vm(world: World) -> None:
    world.templates.given.append(TEMPLATE)
    world.launcher.prefetch(CLONE, "test_x")
    vm = world.launch(CLONE)
    assert (number(vm), [each.kind for each in world.durations]) == (1, ["prefetch", "prefetched"])
    assert vm in vm.network.vms


def test_a_template_whose_kernel_hangs_is_made_again_for_several_vms(world: World) -> None:
    failures: list[VirtainerError] = [GuestStalled("it hangs")]
    made: list[Spec] = []

    def make(spec: Spec, _maker: Maker) -> Template:
        if failures:
            raise failures.pop()
        made.append(spec)
        return TEMPLATE

    world.templates.make = make
    world.launcher.warm(CLONE)
    assert made == [CLONE]


@pytest.mark.parametrize("error", [Removed("guests/debian-13-abc is no longer in the store"), VMGone("bad-image")])
def test_a_removed_guest_image_is_looked_up_again(world: World, error: VirtainerError) -> None:
    """Another process may have removed it since this process used it."""
    again = replace(GUEST, key="debian-13-def")
    world.guests.there, world.guests.stored = [GUEST, again], {again}

    def start(container: FakeContainer) -> None:
        if container.plan.labels["virtainers.uses"] == GUEST.place:
            raise error

    world.on_start = start
    vm = world.launch(BOOT)
    assert [each.plan.labels["virtainers.uses"] for each in world.containers] == [GUEST.place, again.place]
    assert number(vm) == 2
    assert world.notes == [
        "virtainers: guest image debian-13 was removed from the store, or replaced: looking again\n"
    ]


def test_a_vm_that_ends_with_its_guest_image_present_is_not_retried(world: World) -> None:
    world.fates = [VMGone("it ended")]
    with pytest.raises(VMGone, match=r"^it ended$"):
        world.launch(BOOT)
    assert world.notes == []
