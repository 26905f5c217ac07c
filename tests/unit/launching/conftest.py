"""What the tests of launchers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_virtainers.engine.client import Engine
from tests.unit.launching import world as module
from tests.unit.launching.world import World


@pytest.fixture
def engine() -> Iterator[Engine]:
    with module.engine() as found:
        yield found


@pytest.fixture
def world(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    world = World(engine)
    yield world
    world.launcher.close()
