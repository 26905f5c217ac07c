"""A store in a local folder, in which a local shell works."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_virtainers.store import entries
from pytest_virtainers.store.places import MOUNT
from tests.unit.memory_engine import MemoryEngine, listed


class LocalStore:
    """A store in a folder, and the engine whose containers run from some of its places."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: list[str] = []
        self.forgotten: list[str] = []
        self.location = "here"
        self.engine = MemoryEngine()

    def run(self, place: str, store: str = "here") -> None:
        """Start a container from a place of a store."""
        self.engine.listed.append(listed(place, {entries.USES: place, entries.STORE: store}))

    def forget(self, place: str) -> None:
        self.forgotten.append(place)

    def shell(self, script: str, *words: str) -> str:
        command = ["sh", "-c", *(each.replace(MOUNT, str(self._folder)) for each in (script, "sh", *words))]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
        return done.stdout.decode(errors="replace")

    @contextmanager
    def scratch(self) -> Iterator[str]:
        folder = self._folder / ".scratch-1"
        folder.mkdir()
        yield f"{MOUNT}/{folder.name}"
        shutil.rmtree(folder)

    def keep(self, place: str, used: int, manifest: str) -> None:
        """Put an entry of 2 MiB (rounded up) into the store."""
        folder = self._folder / place
        folder.mkdir(parents=True)
        (folder / "disk").write_bytes(os.urandom(3 * 2**19))
        (folder / "manifest.json").write_text(manifest)
        os.utime(folder / "manifest.json", (used, used))

    def places(self) -> set[str]:
        return {str(each.relative_to(self._folder)) for each in self._folder.glob("*/*")}


@pytest.fixture
def local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store of 8 MiB: a guest image with an old and a new template, and one that nothing needs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = LocalStore(tmp_path / "store")
    store.keep("guests/base", 10, json.dumps({"suite": "trixie"}, indent=2))
    store.keep("templates/old", 20, json.dumps({"guest": "guests/base", "image": "debian-13"}))
    store.keep("templates/new", 40, json.dumps({"guest": "guests/base", "image": "debian-13"}))
    store.keep("guests/other", 30, "damaged\rand\tcut sh")
    return store
