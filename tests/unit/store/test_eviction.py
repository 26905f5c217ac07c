"""Entries that are removed from a full store; here the store is a local folder, with a local shell as the helper."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_virtainers.store import eviction
from pytest_virtainers.store.eviction import Entry, surplus
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.store.places import MOUNT
from pytest_virtainers.support.progress import Progress
from tests.unit.memory_engine import MemoryEngine, listed


def kept(name: str, size_mib: int, used: int, *, in_use: bool = False) -> Entry:
    return Entry(f"templates/{name}", size_mib, used, {}, in_use)


def guest(name: str, size_mib: int, used: int, *, in_use: bool = False) -> Entry:
    return Entry(f"guests/{name}", size_mib, used, {}, in_use)


def template(name: str, size_mib: int, used: int, on: str, *, in_use: bool = False) -> Entry:
    return Entry(f"templates/{name}", size_mib, used, {"guest": f"guests/{on}"}, in_use)


OLD, BUSY, NEW = kept("old", 100, 1), kept("busy", 300, 2, in_use=True), kept("new", 200, 3)
ALL = [OLD, BUSY, NEW]


def test_nothing_is_evicted_below_the_limit() -> None:
    assert surplus(ALL, 600) == []


def test_the_least_recently_used_is_evicted_first() -> None:
    assert surplus(ALL, 599) == [OLD]
    assert surplus(ALL, 499) == [OLD, NEW]


def test_entries_in_use_stay() -> None:
    assert surplus(ALL, 0) == [OLD, NEW]
    assert surplus(ALL, 0, keep={"templates/new"}) == [OLD]


def test_a_template_does_not_need_the_one_that_it_was_copied_from() -> None:
    plain = Entry("templates/plain", 100, 1, {"guest": "guests/base", "origin": ""}, in_use=False)
    layer = Entry("templates/layer", 100, 2, {"guest": "guests/base", "origin": plain.place}, in_use=True)
    assert (plain.origin, layer.origin, layer.base) == ("", plain.place, "guests/base")
    assert surplus([plain, layer], 0) == [plain]


def test_a_guest_image_stays_while_a_template_needs_it() -> None:
    base, old, new = guest("base", 400, 1), template("old", 100, 2, "base"), template("new", 100, 3, "base")
    assert surplus([base, old, new], 599) == [old]
    assert surplus([base, old, new], 499) == [old, new]
    assert surplus([base, old, new], 399) == [old, new, base]
    used = template("new", 100, 3, "base", in_use=True)
    assert surplus([base, old, used], 0) == [old]
    assert surplus([base, old, new], 0, keep={new.place}) == [old]


def test_entries_describe_themselves() -> None:
    template = {"image": "debian-13", "ram": 1024, "cpus": 1, "user": "debian"}
    assert Entry("templates/x", 1, 1, template, False).what == "debian-13, 1024 MiB, 1 CPU, user debian"
    described = Entry("templates/x", 1, 1, {**template, "architecture": "arm64"}, False).what
    assert described == "debian-13, arm64, 1024 MiB, 1 CPU, user debian"
    assert Entry("guests/debian-13-x", 1, 1, {"suite": "trixie"}, False).what == "trixie"
    assert Entry("guests/x", 1, 1, {"suite": "trixie", "architecture": "arm64"}, False).what == "trixie, arm64"
    assert Entry("guests/file-x", 1, 1, {"name": "my.qcow2"}, False).what == "my.qcow2"


class Shop:
    """A store in a folder, and an engine with containers that run from some of its places."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: list[str] = []
        self.forgotten: list[str] = []
        self.location = "here"
        self.engine = MemoryEngine()

    def run(self, place: str, store: str = "here") -> None:
        """Start a container from a place of a store."""
        self.engine.listed.append(listed(place, {eviction.USES: place, eviction.STORE: store}))

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
        """Create an entry of 2 MiB, rounded up."""
        folder = self._folder / place
        folder.mkdir(parents=True)
        (folder / "disk").write_bytes(os.urandom(3 * 2**19))
        (folder / "manifest.json").write_text(manifest)
        os.utime(folder / "manifest.json", (used, used))

    def places(self) -> set[str]:
        return {str(each.relative_to(self._folder)) for each in self._folder.glob("*/*")}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a store of 8 MiB: a guest image with an old and a new template, and an unused guest image."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shop = Shop(tmp_path / "store")
    shop.keep("guests/base", 10, json.dumps({"suite": "trixie"}, indent=2))
    shop.keep("templates/old", 20, json.dumps({"guest": "guests/base", "image": "debian-13"}))
    shop.keep("templates/new", 40, json.dumps({"guest": "guests/base", "image": "debian-13"}))
    shop.keep("guests/other", 30, "damaged\rand\tcut sh")
    return shop


def test_contents_lists_entries_with_size_use_and_manifest(shop: Any) -> None:
    shop.run("templates/old")
    shop.run("guests/other", store="elsewhere")
    began = int(time.time())
    with SharedLocks() as holds:
        holds.add("templates/new")
        found = eviction.contents(shop)
    assert [(each.place, each.size_mib, each.in_use) for each in found] == [
        ("guests/base", 2, False),
        ("templates/old", 2, True),
        ("guests/other", 2, False),
        ("templates/new", 2, True),
    ]
    assert [each.used for each in found[:3]] == [10, 20, 30]
    assert found[3].used >= began, "its manifest was not read, but a process has just locked it"
    assert [(each.base, each.what) for each in found[::2]] == [("", "trixie"), ("", "")]
    assert (found[1].base, found[1].manifest["image"]) == ("guests/base", "debian-13")


def test_prune_removes_and_returns_the_surplus(shop: Any) -> None:
    gone = eviction.prune(shop, 4)
    assert [each.place for each in gone] == ["templates/old", "guests/other"]
    assert shop.forgotten == ["templates/old", "guests/other"]
    assert shop.places() == {"guests/base", "templates/new"}
    assert eviction.prune(shop, 4) == []


def test_make_room_never_removes_new_entries(shop: Any) -> None:
    notes: list[str] = []
    shop.made.append("templates/old")
    eviction.make_room(shop, 0, Progress(notes.append, live=False))
    assert shop.places() == {"guests/base", "templates/old"}
    assert notes == [
        "virtainers: the store was full: removed guests/other (, 2 MiB)\n",
        "virtainers: the store was full: removed templates/new (debian-13, None MiB, None CPU, user None, 2 MiB)\n",
    ]


def test_contents_skips_entries_that_others_remove_or_replace(
    shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f"""#!{sys.executable}
import os, shutil, sys
walk = os.walk
def walk_while_others_work(place, **options):
    if place == "templates/old":
        shutil.rmtree(place)
    if place == "templates/new":
        os.rename(place, "away")
    yield from walk(place, **options)
os.walk = walk_while_others_work
*_, script, folder = sys.argv
sys.argv = ["-c", folder]
exec(script)
""")
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    shop.keep("guests/unused", 50, "{}")
    found = eviction.contents(shop)
    assert [each.place for each in found] == ["guests/base", "guests/other", "guests/unused"]
