"""The base from which the runtime image is built, and the messages about it."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_virtainers.engine import runtime_image
from pytest_virtainers.engine.facts import Image
from pytest_virtainers.errors import EngineError, ImageError
from pytest_virtainers.support.paths import locked
from pytest_virtainers.support.progress import SILENT, Progress
from tests.unit.memory_engine import MemoryEngine

OFFICIAL = "docker.io/library/debian:trixie-slim"
OWN = "localhost/virtainers/base:trixie"
REFUSED = "dial tcp: lookup registry-1.docker.io: no such host"
IMAGE = Image("sha256:0123", "amd64", {})


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine(pulled=REFUSED)


def bases(engine: MemoryEngine) -> list[str]:
    """Return the bases from which images were built."""
    return [arguments["BASE"] for arguments in engine.built.values()]


@pytest.fixture
def ensure(engine: MemoryEngine) -> Callable[[], str]:
    """Ensure that there is a runtime image; return the shown messages."""

    def ensure() -> str:
        shown: list[str] = []
        assert runtime_image.ensure(engine, Progress(shown.append, live=False)) == runtime_image.reference()
        return "".join(shown)

    return ensure


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder on PATH, so that the only mmdebstrap is that of a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def install_mmdebstrap(path: Path, script: str) -> None:
    (path / "mmdebstrap").write_text(f"#!/bin/sh\n{script}\n")
    (path / "mmdebstrap").chmod(0o755)


@pytest.mark.parametrize("base", [OFFICIAL, OWN])
def test_an_available_base_is_used(engine: MemoryEngine, ensure: Callable[[], str], base: str) -> None:
    engine.images[base] = IMAGE
    assert ensure() == f"virtainers: the runtime image's base is {base}, which the engine has\n"
    assert bases(engine) == [base]


def test_the_official_base_is_preferred(engine: MemoryEngine, ensure: Callable[[], str]) -> None:
    engine.images |= {OWN: IMAGE, OFFICIAL: IMAGE}
    ensure()
    assert bases(engine) == [OFFICIAL]


def test_an_existing_image_is_not_built(engine: MemoryEngine, ensure: Callable[[], str]) -> None:
    engine.images[runtime_image.reference()] = IMAGE
    assert ensure() == ""
    assert bases(engine) == []


def test_the_official_base_is_pulled(engine: MemoryEngine, ensure: Callable[[], str]) -> None:
    engine.registry["amd64"] = IMAGE
    assert ensure() == f"virtainers: the runtime image's base is {OFFICIAL}, pulled from its registry\n"
    assert bases(engine) == [OFFICIAL]


def test_without_a_registry_mmdebstrap_makes_the_base(
    engine: MemoryEngine, ensure: Callable[[], str], path: Path
) -> None:
    install_mmdebstrap(path, 'echo "I: installing"; echo "$1 $2" >"$3"')
    assert ensure() == (
        f"virtainers: no container registry answers ({REFUSED}); making the base from Debian's packages\n"
    )
    assert engine.imported == {OWN: "--variant=minbase trixie\n"}
    assert bases(engine) == [OWN]


def test_without_mmdebstrap_the_error_has_a_remedy(engine: MemoryEngine, ensure: Callable[[], str]) -> None:
    with pytest.raises(ImageError) as caught:
        ensure()
    assert str(caught.value) == (
        f"the runtime image needs a base: {OFFICIAL} could not be pulled, and mmdebstrap, which can make it from "
        "Debian's packages, is not installed. Install it (apt-get install mmdebstrap), or load that image into "
        "the engine (docker load)."
    )
    assert bases(engine) == []


def test_a_failure_of_mmdebstrap_shows_its_last_lines(
    engine: MemoryEngine, ensure: Callable[[], str], path: Path
) -> None:
    install_mmdebstrap(
        path, 'i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo "line $i"; done; echo "E: no mirror" >&2; exit 25'
    )
    with pytest.raises(ImageError) as caught:
        ensure()
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}/mmdebstrap --variant=minbase trixie failed (exit code 25):"
    assert lines == [*(f"  | line {number}" for number in range(12, 31)), "  | E: no mirror"]
    assert engine.imported == {}


def test_a_failed_build_comes_with_its_remedy(engine: MemoryEngine, ensure: Callable[[], str]) -> None:
    def fail(_on_line: object) -> None:
        raise ImageError("building image x failed")

    engine.images[OFFICIAL] = IMAGE
    engine.builds = fail
    with pytest.raises(ImageError) as caught:
        ensure()
    assert str(caught.value) == (
        "building image x failed\nThe build installs Debian packages: check that containers reach a package mirror."
    )


def test_errors_of_the_engine_pass_through(engine: MemoryEngine) -> None:
    def fail(_on_line: object) -> None:
        raise EngineError("building image x failed: docker 1 said: gone")

    engine.images[OFFICIAL] = IMAGE
    engine.builds = fail
    with pytest.raises(EngineError, match=r"^building image x failed: docker 1 said: gone$"):
        runtime_image.ensure(engine, SILENT)


def test_image_id_reports_a_removed_image(engine: MemoryEngine) -> None:
    engine.images["here"] = IMAGE
    assert runtime_image.image_id(engine, "here") == "sha256:0123"
    with pytest.raises(ImageError, match=r"^docker 1 at unix:///nowhere no longer has the image gone"):
        runtime_image.image_id(engine, "gone")


def test_waiting_for_another_build_is_shown(engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_virtainers.support.progress._QUIET_SECONDS", 0)
    taken, was_shown, shown = threading.Event(), threading.Event(), []

    def build_elsewhere() -> None:
        with locked("runtime-image"):
            taken.set()
            was_shown.wait(60)
            engine.images[runtime_image.reference()] = IMAGE

    def write(text: str) -> None:
        shown.append(text)
        was_shown.set()

    other = threading.Thread(target=build_elsewhere)
    other.start()
    taken.wait()
    runtime_image.ensure(engine, Progress(write, live=True))
    other.join()
    assert "virtainers: waiting for another process, which builds the runtime image (0 s)" in shown[0]
    assert bases(engine) == []
