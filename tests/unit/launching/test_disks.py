"""Disks of VMs without a running container."""

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers.engine.plan import Bind, Plan
from pytest_virtainers.launching.disks import Disks
from pytest_virtainers.support.runtime_modules import protocol
from tests.unit.launching.world import RUN
from tests.unit.memory_engine import MemoryContainer, MemoryEngine


@pytest.mark.parametrize(
    ("volume", "environment"),
    [
        ("web-disk", {"TEMPLATE": "/store/templates/x"}),
        (None, {"TEMPLATE_SAVE": "on", "IMAGE_DIR": "/store/.scratch-1"}),
    ],
)
def test_closing_the_helper_keeps_the_disk_of_a_vm(volume: str | None, environment: dict[str, str]) -> None:
    engine = MemoryEngine()
    binds = (Bind("/store/guests/x", "/volumes/guests/x"),)
    plan = Plan("web", "vm", "an-image", environment=environment, binds=binds, volume=volume)
    vm: Any = SimpleNamespace(machine=SimpleNamespace(volume=volume, container=MemoryContainer(plan)))
    runtime: Any = SimpleNamespace(reference=lambda: "runtime")
    access: Any = None
    with Disks(engine, RUN, runtime_image=runtime, access=access).open(vm) as container:
        assert container.id == engine.created[0].id
    (made,) = engine.created
    disk = () if volume is None else (Bind(protocol.IMAGE_DIR, volume, writable=True),)
    assert (made.volume, made.environment, made.plan.kind) == (None, environment, "helper")
    assert (made.binds, made.plan.offline) == ((*binds, *disk), True), "no network"
    assert made.events == ["start", "close"]
