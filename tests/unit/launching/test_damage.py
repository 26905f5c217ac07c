"""Templates and guest images that turn out to be damaged."""

from dataclasses import replace

import pytest

from pytest_virtainers.errors import StoreError
from pytest_virtainers.launching.integrity import Checked
from tests.unit.launching.world import CLONE, TEMPLATE, World

SPOILED = Checked("templates/abc", "ram", "bb", "aa")


@pytest.mark.parametrize("in_use", [False, True])
def test_a_damaged_template_fails_only_the_next_launch(world: World, in_use: bool) -> None:
    world.in_use = {TEMPLATE.place} if in_use else set()
    world.watch.found = [SPOILED]
    world.templates.given.append(TEMPLATE)
    with pytest.raises(StoreError) as caught:
        world.launch(CLONE)
    message = str(caught.value)
    assert message.startswith(
        "templates/abc: ram is damaged: its SHA-256 is bb, and was aa. VMs of this run were started"
    )
    assert world.damage.found == [message]
    assert world.templates.condemned == ([] if in_use else [True])
    assert ("TEMPLATE" in world.launch(CLONE).machine.container.environment) is not in_use
    assert world.damage.found == [message]
    assert message.endswith("others are booted" if in_use else "It was removed and will be made again")


@pytest.mark.parametrize("in_use", [False, True])
def test_a_copy_of_a_damaged_template_is_removed_with_it(world: World, in_use: bool) -> None:
    layer = replace(TEMPLATE, key="layer", origin=TEMPLATE.place)
    world.in_use = {layer.place} if in_use else set()
    world.templates.given.append(TEMPLATE)
    world.templates.layers.append(layer)
    world.watch.found = [SPOILED]
    world.launcher.look_for_damage()
    assert world.templates.forgotten == ([TEMPLATE] if in_use else [layer, TEMPLATE])
    assert bool(world.damage.why_unusable(layer)) is in_use


def test_damage_found_after_the_last_launch_is_shown_at_the_end(world: World) -> None:
    world.watch.found = [SPOILED]
    world.launcher.close()
    assert world.notes == [f"virtainers: {world.damage.found[0]}\n"]
