"""Mounts of the store: single places, by the directory of a volume, or all of it if there is none."""

from __future__ import annotations

import ast
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_virtainers
from pytest_virtainers.engine.facts import Volume
from pytest_virtainers.engine.plan import Bind
from pytest_virtainers.errors import EngineError, StoreError
from pytest_virtainers.guests import images
from pytest_virtainers.store import entries, places
from pytest_virtainers.store.access import Access, Removed
from pytest_virtainers.store.volume import OpenStore
from tests.unit.memory_engine import MemoryContainer, MemoryEngine

PLACES = ("templates/t", "guests/g")
VOLUME = Volume("/volumes/vol/_data", "yesterday")


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine(volumes={"vol": VOLUME})


class Stored(set[str]):
    """A store that can be opened and has these places."""

    def __call__(self) -> Any:
        return nullcontext(SimpleNamespace(manifest=lambda place: {} if place in self else None))


@pytest.fixture
def access(engine: MemoryEngine) -> Access:
    return Access(engine, "vol", Stored(PLACES))


def test_only_the_places_of_a_directory_are_mounted() -> None:
    assert Access(MemoryEngine(), "/my/store/", Stored()).binds(PLACES) == (
        Bind("/store/templates/t", "/my/store/templates/t"),
        Bind("/store/guests/g", "/my/store/guests/g"),
    )


def test_places_of_a_volume_are_mounted_by_its_directory(access: Access, engine: MemoryEngine) -> None:
    for _ in range(2):
        assert access.binds(["guests/g"]) == (Bind("/store/guests/g", "/volumes/vol/_data/guests/g"),)
    assert engine.asked == ["volume vol"]


def test_only_the_scratch_folder_is_writable(access: Access) -> None:
    assert access.binds(["guests/g"], scratch="/store/.scratch-1") == (
        Bind("/store/guests/g", "/volumes/vol/_data/guests/g"),
        Bind("/store/.scratch-1", "/volumes/vol/_data/.scratch-1", writable=True),
    )


def test_a_detached_vm_keeps_the_volume_in_use_without_seeing_it(access: Access) -> None:
    assert access.binds(PLACES, lasting=True)[2:] == (
        Bind("/kept", "vol"),
        Bind("/usr/lib/virtainer/kept", "/volumes/vol/_data/templates/t"),
    )
    of_a_directory = Access(MemoryEngine(), "/my/store", Stored())
    assert of_a_directory.binds(PLACES, lasting=True) == of_a_directory.binds(PLACES)


def test_a_volume_without_a_directory_is_mounted_whole(access: Access, engine: MemoryEngine) -> None:
    engine.volumes["vol"] = Volume("", "yesterday")
    assert access.binds(PLACES) == (Bind("/store", "vol"),)
    assert access.binds(PLACES, scratch="/store/.scratch-1") == (Bind("/store", "vol", writable=True),)


def test_a_missing_volume_is_inspected_again(access: Access, engine: MemoryEngine) -> None:
    del engine.volumes["vol"]
    assert access.binds(PLACES) == (Bind("/store", "vol"),)
    engine.volumes["vol"] = VOLUME
    assert access.binds(PLACES) != (Bind("/store", "vol"),)


@pytest.mark.parametrize(
    "place",
    [
        *(
            "guests/..",
            "guests/../templates/x",
            "templates",
            "guests/",
            "/guests/g",
            "other/g",
            "guests/a/b",
            "guests/.x",
        ),
        *("guests/x; id", "guests/$(id)", "guests/x\n", "guests/-x", "guests/a:b", "guests/a,readonly=off", "", "."),
    ],
)
def test_everything_but_places_is_refused(place: str, access: Access) -> None:
    store = OpenStore(MemoryEngine(), MemoryContainer(ended=True), "here")
    for use in (
        lambda: access.binds([place]),
        lambda: store.manifest(place),
        lambda: store.new(place).__enter__(),
        lambda: places.path(place),
    ):
        with pytest.raises(
            StoreError, match=r"is not a place in the store: places are guests/KEY and templates/KEY$"
        ):
            use()


def test_keys_of_downloaded_images_are_places() -> None:
    for name in ("..", ".img", "-x", "$(id)", ""):
        found: Any = images.find(f"https://example.org/{name}")
        assert places.is_place(found.place)


def refusal(source: str) -> EngineError:
    return EngineError(f"creating container x failed: bind source path does not exist: {source}")


BINDS = (Bind("/store/templates/t", "/volumes/vol/_data/templates/t"),)


def test_a_removed_place_is_reported() -> None:
    mounting = Access(MemoryEngine(), "/my/store", Stored({"templates/t"})).mounting(PLACES)
    with pytest.raises(Removed, match=r"^guests/g is no longer in the store: it was just removed$"):
        mounting.should_retry(BINDS, refusal(BINDS[0].source))


def test_the_whole_volume_is_mounted_where_its_directories_cannot_be(access: Access) -> None:
    """The first failure is retried: the place may have been removed and created again in between."""
    mounting = access.mounting(PLACES)
    assert mounting.should_retry(BINDS, refusal(BINDS[0].source))
    assert access.binds(PLACES) != (Bind("/store", "vol"),)
    assert mounting.should_retry(BINDS, refusal(BINDS[0].source))
    assert access.binds(PLACES) == (Bind("/store", "vol"),)
    assert not mounting.should_retry(BINDS, refusal(BINDS[0].source))


def test_a_directory_is_never_mounted_whole() -> None:
    mounting = Access(MemoryEngine(), "/my/store", Stored(PLACES)).mounting(PLACES)
    assert [mounting.should_retry(BINDS, refusal(BINDS[0].source)) for _ in range(2)] == [True, False]


def test_other_errors_are_not_retried(access: Access) -> None:
    assert not access.mounting(PLACES).should_retry(BINDS, EngineError("no space left on device"))


def test_odd_names_in_a_directory_are_not_listed() -> None:
    rows = '["guests/x; id", 1, 1, "{}"]\n["guests/good", 1, 2, "{}"]\n'
    store = OpenStore(MemoryEngine(), MemoryContainer(answer=lambda _command: (0, rows.encode())), "here")
    assert [each.place for each in entries.contents(store)] == ["guests/good"]


def test_no_name_becomes_part_of_a_shell_script() -> None:
    """Scripts of the store's helpers are constants; names are passed as their arguments."""
    found = 0
    for path in Path(pytest_virtainers.__file__).parent.rglob("*.py"):
        if "vm" in path.parts:  # these scripts run in guests
            continue
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "shell":
                found += 1
                assert is_constant(call.args[0]), f"{path.name}:{call.lineno}"
            if isinstance(call, ast.List) and [
                each.value for each in call.elts[:2] if isinstance(each, ast.Constant)
            ] == [
                "sh",
                "-c",
            ]:
                found += 1
                assert is_constant(call.elts[2]) or path.name in {"volume.py", "collect.py"}, (
                    f"{path.name}:{call.lineno}"
                )
    assert found > 8


def is_constant(node: ast.expr) -> bool:
    """Return whether a text is a literal or a constant of its module, or is made only of such."""
    if isinstance(node, ast.JoinedStr):
        return all(is_constant(each.value) for each in node.values if isinstance(each, ast.FormattedValue))
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id.isupper())
