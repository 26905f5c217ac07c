"""`@pytest.mark.virtainer`: read from an item and its parents, and checked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.config.parsing import Unreadable
from pytest_virtainers.config.spec import check
from pytest_virtainers.errors import SpecError
from pytest_virtainers.plugin.machines_file import FILE, near

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MARKER = "virtainer"


def arguments(item: pytest.Item) -> list[dict[str, Any]]:
    """Return the checked arguments of all markers of a test, the outermost first.

    From outside to inside: those of the package, the module, the class (base classes first), the function, and its
    parameter set (`pytest.param(…, marks=…)`).

    Raises:
        SpecError: an argument is unknown or not allowed; the message names the test.
    """
    layers = []
    for mark in (each for node in item.listchain() for each in _own(node)):
        where = f"{item.nodeid}: @pytest.mark.{MARKER}"
        if len(mark.args) > 1 or (mark.args and "name" in mark.kwargs):
            raise SpecError(f"{where}: only the name may be given without its keyword, and once")
        named = {"name": mark.args[0]} if mark.args else {}
        layers.append(check({**named, **mark.kwargs}, where, item.path.parent))
    return layers


def _own(node: Any) -> list[pytest.Mark]:
    """Return the markers of one node, the innermost last.

    pytest's order has the markers of a parameter set outside of the function's, and those of a class outside of its
    base classes': https://github.com/pytest-dev/pytest/issues/10406 and 14329.
    """
    marks = [each for each in reversed(node.own_markers) if each.name == MARKER]
    return sorted(marks, key=partial(_depth, node))  # of the same depth: as pytest has them


def _depth(node: Any, mark: pytest.Mark) -> int:
    """Return how far inside a node one of its markers was put; 0 is where its own decorators are."""
    parameters = getattr(node, "callspec", None)
    if parameters is not None and mark in parameters.marks:
        return 1
    if isinstance(node, pytest.Class):
        for distance, kind in enumerate(node.obj.__mro__):
            put = kind.__dict__.get("pytestmark", ())
            if mark in [getattr(each, "mark", each) for each in (put if isinstance(put, list | tuple) else [put])]:
                return -distance
    return 0


def by_name(item: pytest.Item) -> dict[str, list[Mapping[str, Any]]]:
    """Return the checked arguments of each VM of a test that uses `vms`, by name.

    These are the VMs that its markers name, or else all machines of the nearest `virtainers.toml`. Its arguments for
    a VM come first; markers without a name are for all VMs.

    Raises:
        SpecError: a marker is wrong, or there is no name.
    """
    layers, file = arguments(item), near(item.path.parent, item.config.rootpath)
    if file is not None:
        layers = [file.named(layer) for layer in layers]
    names = list(dict.fromkeys(layer["name"] for layer in layers if "name" in layer))
    names = names or (list(file.machines) if file else [])
    if not names:
        raise SpecError(
            f'{item.nodeid}: the fixture vms needs markers with names, such as @pytest.mark.{MARKER}("web"), '
            f"or machines in a file {FILE}"
        )
    return {
        name: [file.machine(name) if file else {}, *(each for each in layers if each.get("name", name) == name)]
        for name in names
    }


def check_all(items: Iterable[pytest.Item]) -> list[str]:
    """Check the markers of all `items`; return the messages for those that are wrong, each once.

    A local file that cannot be read is no fault yet: a fixture may write it, or the test be skipped.
    """
    wrong: dict[str, None] = {}
    for item in items:
        try:
            arguments(item)
            if "vms" in getattr(item, "fixturenames", ()):
                near(item.path.parent, item.config.rootpath)
        except SpecError as error:
            if not isinstance(error.__cause__, Unreadable):
                wrong[str(error)] = None
    return list(wrong)


def scope_node(item: pytest.Item, scope: str) -> pytest.Item | pytest.Collector:
    """Return the node whose end is the end of `scope` for this test; outside of classes it is the test itself."""
    kinds: dict[str, Any] = {"class": pytest.Class, "module": pytest.Module, "session": pytest.Session}
    node = item.getparent(kinds[scope]) if scope in kinds else None
    return item if node is None else node
