"""Scratch folders of the store; here, of a folder on this machine."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_virtainers.errors import StoreError
from pytest_virtainers.store import places
from pytest_virtainers.store.manifests import Manifests
from pytest_virtainers.store.volume import OpenStore
from tests.unit.memory_engine import MemoryContainer, MemoryEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.engine.base import Container

ENGINE = MemoryEngine()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
    monkeypatch.setattr(places, "MOUNT", str(tmp_path))

    def run(command: list[str]) -> tuple[int, bytes]:
        command = [each.replace("kill -9 -1", "true") for each in command]  # would kill ours here
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout

    return OpenStore(ENGINE, MemoryContainer(answer=run), "here")


def names(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


def test_a_complete_folder_becomes_its_place(store: OpenStore, tmp_path: Path) -> None:
    with store.new("templates/x") as scratch:
        store.shell(f"touch {scratch}/disk")
    assert names(tmp_path) == ["templates", "templates/x", "templates/x/disk"]
    assert (tmp_path / "templates/x/disk").stat().st_mode & 0o222 == 0, "its files are read-only"
    assert store.made == ["templates/x"]


def fail_half_way(store: OpenStore, failure: BaseException, at: Callable[[str], object]) -> None:
    with store.new("templates/x") as scratch:
        store.shell(f"touch {scratch}/disk")
        at(scratch)
        raise failure


def test_scratch_folders_of_dead_builders_are_removed(store: OpenStore, tmp_path: Path) -> None:
    for name in ("dead", "busy", "empty"):
        (tmp_path / f".scratch-{name}" / "deep").mkdir(parents=True)
        (tmp_path / f".scratch-{name}" / "deep" / "disk").touch()
    for each in [*tmp_path.rglob("*")]:
        os.utime(each, (time.time() - 3 * 3600,) * 2)
    (tmp_path / ".scratch-busy" / "deep" / "disk").touch()
    (tmp_path / "guests").mkdir()
    with store.scratch() as ours:
        assert sorted(f"{tmp_path}/{each.name}" for each in tmp_path.iterdir()) == sorted(
            [f"{tmp_path}/.scratch-busy", f"{tmp_path}/guests", ours]
        )


def test_empty_places_are_removed(store: OpenStore, tmp_path: Path) -> None:
    """Podman creates the directory of a place that was removed just before a container mounts it."""
    for place in ("guests/gone", "templates/gone", "templates/there"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "templates/there/manifest.json").touch()
    with store.scratch():
        assert names(tmp_path / "templates") == ["there", "there/manifest.json"]
        assert names(tmp_path / "guests") == []


@pytest.mark.parametrize("failure", [StoreError("no room"), KeyboardInterrupt()])
def test_an_unfinished_folder_is_removed(failure: BaseException, store: OpenStore, tmp_path: Path) -> None:
    with pytest.raises(type(failure)):
        fail_half_way(store, failure, str)
    assert names(tmp_path) == []
    assert store.made == []


def test_a_spared_folder_stays_but_is_not_a_place(store: OpenStore, tmp_path: Path) -> None:
    store.spared = spared = set[str]()
    with pytest.raises(StoreError):
        fail_half_way(store, StoreError("no room"), spared.add)
    (scratch,) = spared
    assert [f"{tmp_path}/{each}" for each in names(tmp_path)] == [scratch, f"{scratch}/disk"]
    assert store.made == []


def test_a_remembered_manifest_needs_no_helper(
    store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    started: list[str] = []

    def start() -> Container:
        started.append("helper")
        return store.container

    def opened() -> OpenStore:
        return OpenStore(ENGINE, start, "here", remembered=Manifests(lambda: "here"))

    manifest = tmp_path / "guests" / "x" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"version": 1}')
    assert opened().recall("guests/x") == {"version": 1}
    assert started == ["helper"]
    manifest.write_text('{"version": 2}')
    assert opened().recall("guests/x") == {"version": 1}
    assert started == ["helper"], "another process has read it within the last day"
    assert opened().manifest("guests/x") == {"version": 2}
    assert opened().recall("guests/x") == {"version": 2}, "each read is remembered"
    manifest.unlink()
    assert opened().manifest("guests/x") is None
    assert opened().recall("guests/x") is None


def test_a_replaced_place_is_not_recalled(store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = OpenStore(ENGINE, store.container, "here", remembered=Manifests(lambda: "here"))
    for version in ("1", "2"):
        with store.new("guests/x") as scratch:
            Path(scratch, "manifest.json").write_text(f'{{"version": {version}}}')
        assert store.recall("guests/x") == {"version": int(version)}
