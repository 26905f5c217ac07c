"""`virtainers store verify --remove`."""

from contextlib import nullcontext
from typing import Any, cast

import pytest

from pytest_virtainers.cli import store
from pytest_virtainers.store import entries
from pytest_virtainers.store.entries import Entry
from pytest_virtainers.support import paths

PLAIN = Entry("templates/plain", 1, 1, {"guest": "guests/base", "origin": ""}, in_use=False)
COPIED = Entry("templates/copied", 1, 2, {"guest": "guests/base", "origin": "templates/plain"}, in_use=False)
USED = Entry("templates/used", 1, 3, {"guest": "guests/base", "origin": "templates/plain"}, in_use=True)
OTHER = Entry("templates/other", 1, 4, {"guest": "guests/base", "origin": "templates/another"}, in_use=False)


def test_templates_copied_from_a_damaged_one_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(paths, "locked", lambda _name: nullcontext())
    monkeypatch.setattr(entries, "contents", lambda *_: [PLAIN, COPIED, USED, OTHER])
    monkeypatch.setattr(entries, "remove", lambda _store, places: removed.extend(places))
    opened = cast("Any", None)
    assert store.remove_damaged(opened, {"templates/plain"}) == set()
    assert removed == ["templates/plain", "templates/copied"]
