"""What the benchmarks compare is alike: the line started by hand has the plugin's store and accelerator."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import cold_boot
from pytest_virtainers.engine.container import Bind, Plan
from pytest_virtainers.engine.output import Output
from pytest_virtainers.images import Guest
from pytest_virtainers.settings import resolve
from pytest_virtainers.spec import merge


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_the_accelerator_is_what_the_supervisor_says(accel: str) -> None:
    said = f"virtainer: hello\nvirtainer: starting web: 1024 MiB, 1 CPU, {accel}, /image (qcow2), prepared in 0.1 s\n"
    assert cold_boot.accelerator(Output(said.encode())) == accel


@pytest.mark.parametrize(("accel", "devices"), [("kvm", ("/dev/kvm",)), ("tcg", ())])
def test_by_hand_the_same_accelerator_and_store_are_used(
    monkeypatch: pytest.MonkeyPatch, accel: str, devices: tuple[str, ...]
) -> None:
    plans: list[Plan] = []

    def container(_engine: object, plan: Plan, _run: str) -> None:
        plans.append(plan)
        raise ZeroDivisionError

    monkeypatch.setattr(cold_boot, "Container", container)
    manager: Any = SimpleNamespace(
        engine=None, guest=lambda _image: Guest("debian-13-abc", "debian", "digest"), runtime_image=lambda: "runtime"
    )
    with pytest.raises(ZeroDivisionError):
        cold_boot.by_hand(manager, merge(resolve([]).shape), "net", "/my/store", accel)
    (plan,) = plans
    assert (plan.binds, plan.devices) == ((Bind("/store", "/my/store"),), devices)
    assert plan.entrypoint is not None
    assert f"-machine q35,accel={accel} " in plan.entrypoint[-1]
