"""Fixtures of tests of launchers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.launching import world as module
from tests.unit.launching.world import World
from tests.unit.memory_engine import MemoryEngine


@pytest.fixture
def engine() -> MemoryEngine:
    return module.engine()


@pytest.fixture
def world(engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    world = World(engine)
    yield world
    world.launcher.close()
