"""The benchmarks compare like with like, and their table shows what was measured."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import __main__, cold_boot, virtme_ng
from benchmarks.rows import Row, as_json, markdown
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.engine.output import Output
from pytest_virtainers.engine.plan import Bind, Plan
from pytest_virtainers.guests.images import GuestImage
from tests.unit.memory_engine import MemoryContainer, MemoryEngine
from tests.unit.vm.fake_container import event


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_the_accelerator_is_what_the_supervisor_says(accel: str) -> None:
    fields = {"name": "web", "ram_mib": 1024, "cpus": 1, "disk": "/image", "format": "qcow2", "prepared_s": 0.1}
    said = event("note", text="hello") + event("started", accel=accel, **fields)
    assert cold_boot.accelerator(Output(said)) == accel


@pytest.mark.parametrize(("accel", "devices"), [("kvm", ("/dev/kvm",)), ("tcg", ())])
def test_by_hand_the_same_accelerator_and_store_are_used(accel: str, devices: tuple[str, ...]) -> None:
    plans: list[Plan] = []

    def refuse(plan: Plan) -> MemoryContainer:
        plans.append(plan)
        raise ZeroDivisionError

    launcher: Any = SimpleNamespace(
        engine=MemoryEngine(factory=refuse),
        guests=SimpleNamespace(get=lambda _image: GuestImage("debian-13-abc", "debian", "digest")),
        runtime_image=SimpleNamespace(reference=lambda: "runtime"),
    )
    with pytest.raises(ZeroDivisionError):
        cold_boot.by_hand(launcher, merge(resolve([]).shape), "net", "/my/store", accel)
    (plan,) = plans
    assert (plan.binds, plan.devices) == ((Bind("/store", "/my/store"),), devices)
    assert plan.entrypoint is not None
    assert f"-machine q35,accel={accel} " in plan.entrypoint[-1]


def test_virtme_ng_is_left_out_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert virtme_ng.measure() == []
    assert capsys.readouterr().out == "virtme-ng is left out: vng, busybox, modprobe, apt-get not installed\n"


@pytest.mark.parametrize(("accel", "options"), [("kvm", []), ("tcg", ["--disable-kvm"])])
def test_virtme_ng_gets_the_shape_and_the_accelerator_of_our_clone(
    accel: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vng").write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/words\necho starting >&2\necho it runs\n')
    (tmp_path / "vng").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(virtme_ng, "VIRTIOFSD", tmp_path)
    spec = merge(resolve([]).shape, {"ram": 512, "cpus": 2})
    assert 0 < virtme_ng.start(Path("/boot/vmlinuz-1"), spec, accel) < 60
    words = [
        "--verbose",
        "--run",
        "/boot/vmlinuz-1",
        "--cpus",
        "2",
        "--memory",
        "512M",
        *options,
        "--exec",
        "echo it runs",
    ]
    assert (tmp_path / "words").read_text() == " ".join(words) + "\n"


ROWS = [
    Row("a clone", (1.0, 3.0, 1.5), "s", "its floor", (1.0, 1.0, 1.25), 1.3),
    Row("the plugin", (12.34,), "ms", "20 ms", (20.0,), 1.0, note="with bytecode"),
    Row("a boot", (60.0,), "s", "a clone", (1.5,)),
]


def test_the_table_shows_medians_ratios_and_which_targets_are_missed() -> None:
    assert markdown(ROWS).splitlines() == [
        "| what | median | against | its median | ratio | target |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a clone | 1.5 s | its floor | 1 s | 1.50 | ≤ 1.3 (missed) |",
        "| the plugin | 12.3 ms | 20 ms | 20 ms | 0.62 | ≤ 1 |",
        "| a boot | 60 s | a clone | 1.5 s | 40.00 |  |",
        "",
        "the plugin: with bytecode",
    ]


def test_a_program_finds_all_values_and_the_machine() -> None:
    found = json.loads(as_json(ROWS))
    assert found["machine"].keys() == {"processor", "cores", "memory", "kernel", "python"}
    assert [(row["values"], row["ratio"]) for row in found["rows"]] == [
        ([1.0, 3.0, 1.5], 1.5),
        ([12.34], pytest.approx(0.617)),
        ([60.0], 40.0),
    ]


@pytest.mark.parametrize("name", __main__.NAMES)
def test_each_benchmark_can_be_measured(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").measure)
