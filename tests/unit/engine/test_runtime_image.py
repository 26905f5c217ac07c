"""From what the runtime image is built, and what is said about it. Of the engine only the SDK's client is a fake."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from pytest_virtainers.engine import runtime_image
from pytest_virtainers.engine.docker.engine import Engine
from pytest_virtainers.errors import EngineError, ImageError
from pytest_virtainers.support.paths import locked
from pytest_virtainers.support.progress import SILENT, Progress

OFFICIAL = "docker.io/library/debian:trixie-slim"
OWN = "localhost/virtainers/base:trixie"
REFUSED = "dial tcp: lookup registry-1.docker.io: no such host"


class Api:
    """As much of the SDK's client as building needs: `images` is what the engine has, `built_from` the bases used."""

    def __init__(self) -> None:
        self.images: set[str] = set()
        self.imported: dict[str, str] = {}
        self.built_from: list[str] = []
        self.pull_events: list[dict[str, str]] | Exception = docker.errors.APIError(REFUSED)
        self.build_events = [{"stream": "Step 1/9 : FROM base\n"}]
        self.builds = True

    def inspect_image(self, image: str) -> dict[str, str]:
        if image not in self.images:
            raise docker.errors.ImageNotFound(image)
        return {"Id": image}

    def pull(self, image: str, **_how: bool) -> Iterator[dict[str, str]]:
        if isinstance(self.pull_events, Exception):
            raise self.pull_events
        if not any("error" in event for event in self.pull_events):
            self.images.add(image)
        return iter(self.pull_events)

    def build(self, *, tag: str, buildargs: dict[str, str], **_how: Any) -> Iterator[dict[str, str]]:
        assert buildargs["BASE"] in self.images
        self.built_from.append(buildargs["BASE"])
        if self.builds:
            self.images.add(tag)
        return iter(self.build_events)

    def import_image(self, *, src: str, repository: str) -> None:
        self.imported[repository] = Path(src).read_text()
        self.images.add(repository)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def engine(api: Api) -> Engine:
    engine: Any = object.__new__(Engine)
    engine.api, engine.kind, engine.version, engine.url, engine._service = api, "docker", "1", "unix:///x", None
    assert isinstance(engine, Engine)
    return engine


@pytest.fixture
def ensure(engine: Engine) -> Callable[[], str]:
    """Have the runtime image, and give what was shown meanwhile."""

    def ensure() -> str:
        shown: list[str] = []
        assert runtime_image.ensure(engine, Progress(shown.append, live=False)) == runtime_image.reference()
        return "".join(shown)

    return ensure


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the only folder on PATH, so that there is no mmdebstrap but ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def install_mmdebstrap(path: Path, script: str) -> None:
    (path / "mmdebstrap").write_text(f"#!/bin/sh\n{script}\n")
    (path / "mmdebstrap").chmod(0o755)


@pytest.mark.parametrize("base", [OFFICIAL, OWN])
def test_a_base_that_the_engine_has_is_taken(api: Api, ensure: Callable[[], str], base: str) -> None:
    api.images.add(base)
    assert ensure() == f"virtainers: the runtime image's base is {base}, which the engine has\n"
    assert api.built_from == [base]


def test_the_official_base_goes_first(api: Api, ensure: Callable[[], str]) -> None:
    api.images |= {OWN, OFFICIAL}
    ensure()
    assert api.built_from == [OFFICIAL]


def test_an_image_that_is_there_is_not_built(api: Api, ensure: Callable[[], str]) -> None:
    api.images.add(runtime_image.reference())
    assert ensure() == ""
    assert api.built_from == []


def test_the_official_base_is_pulled(api: Api, ensure: Callable[[], str]) -> None:
    api.pull_events = [{"status": "Pulling fs layer"}, {"status": "Download complete"}]
    assert ensure() == f"virtainers: the runtime image's base is {OFFICIAL}, pulled from its registry\n"
    assert api.built_from == [OFFICIAL]


REFUSALS = pytest.mark.parametrize(
    "events",
    [
        docker.errors.APIError("500", explanation=REFUSED),
        OSError(REFUSED),
        [{"status": "Trying"}, {"error": REFUSED}],
    ],
    ids=["Docker", "connection", "Podman"],
)


@REFUSALS
def test_where_no_registry_answers_mmdebstrap_makes_the_base(
    api: Api, ensure: Callable[[], str], path: Path, events: Any
) -> None:
    api.pull_events = events
    install_mmdebstrap(path, 'echo "I: installing"; echo "$1 $2" >"$3"')
    assert ensure() == (
        f"virtainers: no container registry answers ({REFUSED}); making the base from Debian's packages\n"
    )
    assert api.imported == {OWN: "--variant=minbase trixie\n"}
    assert api.built_from == [OWN]


@REFUSALS
def test_without_mmdebstrap_the_error_says_what_mends_it(api: Api, ensure: Callable[[], str], events: Any) -> None:
    api.pull_events = events
    with pytest.raises(ImageError) as caught:
        ensure()
    assert str(caught.value) == (
        f"the runtime image needs a base: {OFFICIAL} could not be pulled, and mmdebstrap, which can make it from "
        "Debian's packages, is not installed. To mend it: apt-get install mmdebstrap, or load that image into the "
        "engine (docker load)."
    )
    assert api.built_from == []


def test_a_failure_of_mmdebstrap_shows_its_last_lines(api: Api, ensure: Callable[[], str], path: Path) -> None:
    install_mmdebstrap(
        path, 'i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo "line $i"; done; echo "E: no mirror" >&2; exit 25'
    )
    with pytest.raises(ImageError) as caught:
        ensure()
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}/mmdebstrap --variant=minbase trixie failed (exit code 25):"
    assert lines == [*(f"  | line {number}" for number in range(12, 31)), "  | E: no mirror"]
    assert api.imported == {}


def test_a_failure_of_the_build_shows_its_last_lines(api: Api, ensure: Callable[[], str]) -> None:
    api.images.add(OFFICIAL)
    api.builds = False
    api.build_events = [*({"stream": f"line {number}\n"} for number in range(1, 31)), {"error": "exit code: 100"}]
    with pytest.raises(ImageError) as caught:
        ensure()
    assert str(caught.value) == "\n".join(
        [
            "building the runtime image failed on docker 1 at unix:///x. The build's last lines:",
            *(f"  | line {number}" for number in range(12, 31)),
            "  | exit code: 100",
            "The build installs Debian packages: check that containers reach a package mirror.",
        ]
    )


def test_an_engine_that_goes_away_during_the_build_is_named(
    api: Api, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(**_how: Any) -> None:
        raise docker.errors.APIError("gone")

    api.images.add(OFFICIAL)
    monkeypatch.setattr(api, "build", gone)
    with pytest.raises(EngineError, match=r"building the runtime image failed: docker 1 at unix:///x said: gone"):
        runtime_image.ensure(engine, SILENT)


def test_who_waits_for_another_process_that_builds_is_told_so(
    api: Api, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_virtainers.support.paths._TELL_SECONDS", 0.01)
    monkeypatch.setattr("pytest_virtainers.support.progress._QUIET_SECONDS", 0)
    taken, told, shown = threading.Event(), threading.Event(), []

    def build_elsewhere() -> None:
        with locked("runtime-image"):
            taken.set()
            told.wait(5)
            api.images.add(runtime_image.reference())

    def write(text: str) -> None:
        shown.append(text)
        told.set()

    other = threading.Thread(target=build_elsewhere)
    other.start()
    taken.wait()
    runtime_image.ensure(engine, Progress(write, live=True))
    other.join()
    assert "virtainers: waiting for another process, which builds the runtime image (0 s)" in shown[0]
    assert api.built_from == []
