"""Scratch folders of the store; here, of a folder on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers import store
from pytest_virtainers.errors import EngineError, StoreError
from pytest_virtainers.store import Workshop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setattr(store, "MOUNT", str(tmp_path))

    def run(command: list[str], _on_output: object = None) -> tuple[int, bytes]:
        command = [each.replace("kill -9 -1", "true") for each in command]  # the processes of a container, not ours
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout

    container: Any = SimpleNamespace(run=run, ended=False)
    return Workshop(container, "here")


def names(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


def test_what_is_whole_gets_its_name(shop: Workshop, tmp_path: Path) -> None:
    with shop.new("templates/x") as scratch:
        shop.shell(f"touch {scratch}/disk")
    assert names(tmp_path) == ["templates", "templates/x", "templates/x/disk"]
    assert shop.made == ["templates/x"]


def fail_half_way(shop: Workshop, failure: BaseException, at: Callable[[str], object]) -> None:
    with shop.new("templates/x") as scratch:
        shop.shell(f"touch {scratch}/disk")
        at(scratch)
        raise failure


def test_what_a_dead_builder_left_goes_and_what_is_worked_on_stays(shop: Workshop, tmp_path: Path) -> None:
    for name in ("dead", "busy", "empty"):
        (tmp_path / f".scratch-{name}" / "deep").mkdir(parents=True)
        (tmp_path / f".scratch-{name}" / "deep" / "disk").touch()
    for each in [*tmp_path.rglob("*")]:
        os.utime(each, (time.time() - 3 * 3600,) * 2)
    (tmp_path / ".scratch-busy" / "deep" / "disk").touch()
    (tmp_path / "guests").mkdir()
    with shop.scratch() as ours:
        assert sorted(f"{tmp_path}/{each.name}" for each in tmp_path.iterdir()) == sorted(
            [f"{tmp_path}/.scratch-busy", f"{tmp_path}/guests", ours]
        )


@pytest.mark.parametrize("failure", [StoreError("no room"), KeyboardInterrupt()])
def test_what_is_half_made_goes(failure: BaseException, shop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(type(failure)):
        fail_half_way(shop, failure, str)
    assert names(tmp_path) == []
    assert shop.made == []


def test_what_somebody_else_still_uses_stays_and_is_not_taken_for_whole(shop: Workshop, tmp_path: Path) -> None:
    shop.spared = spared = set[str]()
    with pytest.raises(StoreError):
        fail_half_way(shop, StoreError("no room"), spared.add)
    (scratch,) = spared
    assert [f"{tmp_path}/{each}" for each in names(tmp_path)] == [scratch, f"{scratch}/disk"]
    assert shop.made == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_disk_for_the_user_does_not_go_through_a_link_that_is_planted_next_to_it(
    fails: bool, tmp_path: Path
) -> None:
    (tmp_path / "victim").write_text("untouched")
    for each in ("flat.qcow2", "flat.qcow2.part"):
        (tmp_path / each).symlink_to("victim")

    def fetch(_path: str, target: Path) -> None:
        target.write_bytes(b"disk")
        if fails:
            raise EngineError("it broke off")

    container: Any = SimpleNamespace(run=lambda *_: (0, b""), fetch=fetch)
    with pytest.raises(EngineError, match="broke off") if fails else contextlib.nullcontext():
        Workshop(container, "here").fetch_flat("/store/.scratch-1", "overlay", tmp_path / "flat.qcow2")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert names(tmp_path) == ["flat.qcow2", "flat.qcow2.part", "victim"]
    assert (tmp_path / "flat.qcow2").is_symlink() == fails
