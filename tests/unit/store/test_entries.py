"""Listing the entries of the store."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_virtainers.store import entries
from pytest_virtainers.store.entries import Entry
from pytest_virtainers.store.locks import SharedLocks


def test_entries_describe_themselves() -> None:
    template = {"image": "debian-13", "ram": 1024, "cpus": 1, "user": "debian"}
    assert Entry("templates/x", 1, 1, template, False).what == "debian-13, 1024 MiB, 1 CPU, user debian"
    said = Entry("templates/x", 1, 1, {**template, "architecture": "arm64"}, False).what
    assert said == "debian-13, arm64, 1024 MiB, 1 CPU, user debian"
    assert Entry("guests/debian-13-x", 1, 1, {"suite": "trixie"}, False).what == "trixie"
    assert Entry("guests/x", 1, 1, {"suite": "trixie", "architecture": "arm64"}, False).what == "trixie, arm64"
    assert Entry("guests/file-x", 1, 1, {"name": "my.qcow2"}, False).what == "my.qcow2"


def test_contents_lists_entries_with_size_use_and_manifest(local_store: Any) -> None:
    local_store.run("templates/old")
    local_store.run("guests/other", store="elsewhere")
    began = int(time.time())
    with SharedLocks() as holds:
        holds.add("templates/new")
        found = entries.contents(local_store)
    assert [(each.place, each.size_mib, each.in_use) for each in found] == [
        ("guests/base", 2, False),
        ("templates/old", 2, True),
        ("guests/other", 2, False),
        ("templates/new", 2, True),
    ]
    assert [each.used for each in found[:3]] == [10, 20, 30]
    assert found[3].used >= began, "it was not looked at, but a process has just begun to use it"
    assert [(each.base, each.what) for each in found[::2]] == [("", "trixie"), ("", "")]
    assert (found[1].base, found[1].manifest["image"]) == ("guests/base", "debian-13")


def test_contents_skips_entries_that_others_remove_or_replace(
    local_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    local_store.keep("guests/unused", 50, "{}")
    found = entries.contents(local_store)
    assert [each.place for each in found] == ["guests/base", "guests/other", "guests/unused"]
