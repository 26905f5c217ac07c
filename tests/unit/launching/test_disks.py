"""Disks of VMs whose own container is gone."""

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers.engine import detect
from pytest_virtainers.engine.container import Bind, Container
from pytest_virtainers.launching.disks import Disks
from tests.unit.fake_engine import serving
from tests.unit.launching.world import ANSWERS, RUN


@pytest.mark.parametrize(
    ("volume", "environment"),
    [
        ("web-disk", {"TEMPLATE": "/store/templates/x"}),
        (None, {"TEMPLATE_SAVE": "on", "IMAGE_DIR": "/store/.scratch-1"}),
    ],
)
def test_the_disk_of_a_vm_outlives_the_helper_that_opens_it(
    volume: str | None, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def create(_self: Container, plan: Any, _run: str) -> str:
        made.append(plan)
        return "0123"

    monkeypatch.setattr(Container, "_create", create)
    monkeypatch.setattr(Container, "start", lambda _self: None)
    binds = (Bind("/store/guests/x", "/volumes/guests/x"),)
    of_vm = SimpleNamespace(environment=environment, binds=binds)
    vm: Any = SimpleNamespace(machine=SimpleNamespace(volume=volume, container=of_vm))
    runtime: Any = SimpleNamespace(reference=lambda: "runtime")
    access: Any = None
    with serving(ANSWERS) as server:
        engine = detect.find(server.url)
        with Disks(engine, RUN, runtime_image=runtime, access=access).open(vm) as container:
            assert container.id == "0123"
        engine.close()
    assert (made[0].volume, made[0].environment, made[0].kind) == (volume, environment, "helper")
    assert (made[0].binds, made[0].offline) == (binds, True), "it has what the VM had, and no network"
    assert [each for each in server.asked if each.startswith("DELETE")] == ["DELETE /containers/0123"]
