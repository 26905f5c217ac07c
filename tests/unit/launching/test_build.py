"""The launcher that is built from its real parts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_virtainers.config.settings import Settings, resolve
from pytest_virtainers.engine import runtime_image
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.errors import EngineError, EngineNotFound
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.support.progress import SILENT, Progress
from tests.unit.fake_engine import Answer, FakeEngine, serving
from tests.unit.launching.world import BOOT

ANSWERS: dict[str, Answer] = {
    "GET /info": (200, {"MemTotal": 64 * 1024**3}),
    "GET /containers/json": (200, []),
    "GET /networks": (200, []),
    "GET /volumes": (200, {"Volumes": []}),
    "POST /networks/create": (201, {"Id": "n"}),
    f"GET /images/{runtime_image.reference()}/json": (200, {"Id": "sha256:runtime"}),
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serving(ANSWERS) as server:
        yield server


@pytest.fixture
def settings(server: FakeEngine) -> Settings:
    return replace(resolve([]), engine=server.url, store="/my/store")


def test_a_closed_launcher_leaves_no_network(settings: Settings, server: FakeEngine) -> None:
    with build_launcher(settings, SILENT) as launcher:
        network = f"/networks/virtainers-{launcher.run_id}-default"
        server.answers |= {f"GET {network}": (200, {"IPAM": {"Config": []}}), f"DELETE {network}": (204, None)}
        setting = launcher.networks.setting(BOOT.first_network)
        plan = launcher.containers.planner.plan(BOOT, "web", ["guests/debian-13-abc"], {}, "a-test", setting=setting)
        assert (plan.image, plan.environment["RAM"]) == (launcher.runtime_image.reference(), "1024")
    assert f"DELETE {network}" in server.asked
    launcher.close()
    assert server.asked.count(f"DELETE {network}") == 1, "once"


def test_removed_leftovers_of_dead_runs_are_shown(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = ["virtainers-old-1-web", "virtainers-old-default"]
    monkeypatch.setattr(DockerEngine, "sweep", lambda _engine: swept)
    notes: list[str] = []
    build_launcher(settings, Progress(notes.append, live=False)).close()
    assert notes == [
        "virtainers: removed what an earlier run left behind: virtainers-old-1-web, virtainers-old-default\n"
    ]


def test_an_engine_that_fails_is_closed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def sweep(_engine: DockerEngine) -> list[str]:
        raise EngineError("it fails")

    closed: list[str] = []
    monkeypatch.setattr(DockerEngine, "sweep", sweep)
    monkeypatch.setattr(DockerEngine, "close", lambda engine: closed.append(engine.url))
    with pytest.raises(EngineError, match=r"^it fails$"):
        build_launcher(settings, SILENT)
    assert closed == [settings.engine]


def test_without_an_engine_there_is_no_launcher(settings: Settings) -> None:
    with pytest.raises(EngineNotFound):
        build_launcher(replace(settings, engine="unix:///nowhere"), SILENT)
