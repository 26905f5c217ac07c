"""What the container of a VM gets, by the way in which the VM starts."""

from collections.abc import Callable

import pytest

from pytest_virtainers.config.spec import Spec
from pytest_virtainers.launching import memory_budget
from pytest_virtainers.launching.container_plan import Start
from tests.unit.launching.world import BOOT, GUEST, World

TEMPLATE, SCRATCH = "/store/templates/abc", "/store/.scratch-1"
SAVED = {"TEMPLATE_SAVE": "on", "IMAGE_DIR": SCRATCH}


@pytest.mark.parametrize(
    ("start", "variables", "counts"),
    [
        (Start(), {}, memory_budget.booted_mib),
        (Start(save_into=SCRATCH), SAVED, memory_budget.booted_mib),
        (Start(TEMPLATE), {"TEMPLATE": TEMPLATE}, memory_budget.cloned_mib),
        (Start(TEMPLATE, save_into=SCRATCH), {"TEMPLATE": TEMPLATE, **SAVED}, memory_budget.booted_mib),
    ],
    ids=["boot", "boot to save", "clone", "layer"],
)
def test_variables_memory_and_disk_follow_the_start(
    world: World, start: Start, variables: dict[str, str], counts: Callable[[Spec], int]
) -> None:
    setting = world.networks.setting(BOOT.first_network)
    plan = world.launcher.containers.planner.plan(BOOT, "x", [GUEST.place], {}, "", start=start, setting=setting)
    names = ("TEMPLATE", "TEMPLATE_SAVE", "IMAGE_DIR")
    assert {name: plan.environment[name] for name in names if name in plan.environment} == variables
    assert plan.labels[memory_budget.MEMORY] == str(counts(BOOT))
    assert [each.target for each in plan.binds if each.writable] == ([SCRATCH] if start.save_into else [])
    assert plan.volume == (None if start.save_into else "x-disk"), (
        "a VM that is to be saved has its disk in the store"
    )
