"""Entries that are evicted from a full store."""

from typing import Any

from pytest_virtainers.store import eviction
from pytest_virtainers.store.entries import Entry
from pytest_virtainers.store.eviction import surplus
from pytest_virtainers.support.progress import Progress


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


def test_prune_removes_and_returns_the_surplus(local_store: Any) -> None:
    gone = eviction.prune(local_store, 4)
    assert [each.place for each in gone] == ["templates/old", "guests/other"]
    assert local_store.forgotten == ["templates/old", "guests/other"]
    assert local_store.places() == {"guests/base", "templates/new"}
    assert eviction.prune(local_store, 4) == []


def test_make_room_never_removes_new_entries(local_store: Any) -> None:
    notes: list[str] = []
    local_store.made.append("templates/old")
    eviction.make_room(local_store, 0, Progress(notes.append, live=False))
    assert local_store.places() == {"guests/base", "templates/old"}
    assert notes == [
        "virtainers: the store was full: removed guests/other (, 2 MiB)\n",
        "virtainers: the store was full: removed templates/new (debian-13, None MiB, None CPU, user None, 2 MiB)\n",
    ]
