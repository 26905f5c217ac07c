"""Findings of `virtainers doctor`, without an engine or with a fake one."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_virtainers import cli, doctor
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.doctor import Finding
from pytest_virtainers.engine import runtime_image
from pytest_virtainers.engine.facts import Image
from pytest_virtainers.errors import EngineError, StoreError
from pytest_virtainers.guests import catalogue
from pytest_virtainers.store.volume import OpenStore
from tests.unit.memory_engine import MemoryContainer, MemoryEngine


def test_a_finding_shows_its_severity() -> None:
    assert str(Finding("kvm", "usable")) == "ok   kvm: usable"
    assert str(Finding("kvm", "not ours", "join")) == "note kvm: not ours\n       remedy: join"
    assert str(Finding("store", "full", "free it", fatal=True)) == "FAIL store: full\n       remedy: free it"


def test_without_an_engine_doctor_fails_and_lists_what_it_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VIRTAINER_ENGINE", raising=False)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith(
        "FAIL engine: no container engine answered (engine=auto). Tried:\n"
        "  DOCKER_HOST, tcp://127.0.0.1:9: Connection refused\n"
        "Remedy: apt-get install podman   (or: docker.io; then start dockerd)\n"
    )
    assert cli.main(["doctor", "--json"]) == 1
    last = json.loads(capsys.readouterr().out)[-1]
    assert (last["topic"], last["remedy"], last["fatal"]) == ("engine", "", True)
    assert last["seen"].startswith("no container engine answered")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MemoryEngine:
    """Replace the engine by one that has the runtime image."""
    engine = MemoryEngine(images={runtime_image.reference(): Image("sha256:0123", "amd64", {})})
    monkeypatch.setattr(doctor, "find", lambda _choice: engine)
    return engine


def examine() -> dict[str, Finding]:
    return {finding.topic: finding for finding in doctor.examine(resolve([]))}


def test_an_engine_that_fails_is_fatal(engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise EngineError("it said: no")

    monkeypatch.setattr(engine, "memory_mib", fail)
    found = examine()["engine"]
    assert found == Finding("engine", "it said: no", "make the engine answer, then run doctor again", fatal=True)
    assert engine.closed


def test_an_engine_that_copies_images_is_slow(engine: MemoryEngine) -> None:
    engine.images = {}
    assert "storage driver" not in examine()
    engine.driver = "vfs"
    found = examine()["storage driver"]
    assert found.seen.startswith("vfs: the engine copies the whole runtime image for each VM")
    assert found.remedy.startswith("use overlay")
    assert not found.fatal


def test_a_missing_runtime_image_is_not_an_error(engine: MemoryEngine) -> None:
    engine.images = {}
    found = examine()
    assert (
        found["runtime image"].seen == f"{runtime_image.reference()} is built at first use, or now: virtainers build"
    )
    assert "store" not in found
    assert not any(finding.fatal for finding in found.values())


def test_a_store_that_cannot_be_opened_is_fatal(engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("no")

    monkeypatch.setattr(doctor, "open_store", refuse)
    assert examine()["store"] == Finding("store", "no", "choose another store with VIRTAINER_STORE", fatal=True)


def test_listing_guest_images_does_not_mark_them_as_used(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pytest_virtainers.doctor.MOUNT", str(tmp_path))

    def run(command: list[str]) -> tuple[int, bytes]:
        finished = subprocess.run(command, capture_output=True, check=False)
        return finished.returncode, finished.stdout

    @contextmanager
    def open_store(*_: object) -> Iterator[OpenStore]:
        yield OpenStore(engine, MemoryContainer(answer=run), "here")

    monkeypatch.setattr(doctor, "open_store", open_store)
    entry = catalogue.catalogue()["debian-12"]
    manifest = tmp_path / entry.place / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"disk": {}}')
    os.utime(manifest, (1, 1))
    assert examine()["guest images"].seen.startswith("in the store: debian-12; ")
    assert manifest.stat().st_mtime == 1
