"""Manifests of a store that are remembered between runs."""

import os
import stat
import time
from pathlib import Path

import pytest

from pytest_virtainers.store.manifests import Manifests

FACTS = {"disk": {"sha256": "abc"}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def of(store: str) -> Manifests:
    return Manifests(lambda: store)


def files(cache: Path) -> list[Path]:
    return list(cache.glob("pytest-virtainers/manifests/*"))


def test_another_process_recalls_a_manifest() -> None:
    of("a").put("guests/debian", FACTS)
    assert of("a").get("guests/debian") == FACTS
    assert of("a").get("guests/other") is None


def test_stores_do_not_share_manifests() -> None:
    of("a").put("guests/debian", FACTS)
    assert of("b").get("guests/debian") is None


def test_a_missing_manifest_is_forgotten() -> None:
    of("a").put("guests/debian", FACTS)
    of("a").put("guests/debian", None)
    assert of("a").get("guests/debian") is None


def test_a_manifest_older_than_a_day_is_removed(cache: Path) -> None:
    of("a").put("guests/old", FACTS)
    yesterday = time.time() - 25 * 60 * 60
    (file,) = files(cache)
    os.utime(file, (yesterday, yesterday))
    assert of("a").get("guests/old") is None
    of("a").put("guests/new", FACTS)
    assert [each.name.endswith("guests-new.json") for each in files(cache)] == [True]


def test_damaged_files_are_not_recalled(cache: Path) -> None:
    of("a").put("guests/debian", FACTS)
    (file,) = files(cache)
    for content in ("", "[]", '{"disk": '):
        file.write_text(content)
        assert of("a").get("guests/debian") is None


def test_only_this_user_reads_the_keys_of_templates(cache: Path) -> None:
    of("a").put("templates/abc", {"keys": "private"})
    (file,) = files(cache)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
