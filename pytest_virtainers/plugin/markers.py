"""`@pytest.mark.virtainer`: read from an item and its parents, checked, and folded into a `Spec`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.config.spec import check
from pytest_virtainers.errors import SpecError
from pytest_virtainers.plugin.machines_file import FILE, near

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MARKER = "virtainer"


def arguments(item: pytest.Item) -> list[dict[str, Any]]:
    """Return the checked arguments of all markers of a test, the outermost (module) first.

    Raises:
        SpecError: an argument is unknown or not allowed; the message names the test.
    """
    layers = []
    for mark in reversed(list(item.iter_markers(MARKER))):
        where = f"{item.nodeid}: @pytest.mark.{MARKER}"
        if len(mark.args) > 1 or (mark.args and "name" in mark.kwargs):
            raise SpecError(f"{where}: only the name may be given without its keyword, and once")
        named = {"name": mark.args[0]} if mark.args else {}
        layers.append(check({**named, **mark.kwargs}, where, item.path.parent))
    return layers


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
    """Check the markers of all `items`; return the messages for those that are wrong, each once."""
    wrong: dict[str, None] = {}
    for item in items:
        try:
            arguments(item)
            if "vms" in getattr(item, "fixturenames", ()):
                near(item.path.parent, item.config.rootpath)
        except SpecError as error:
            wrong[str(error)] = None
    return list(wrong)


def scope_node(item: pytest.Item, scope: str) -> pytest.Item | pytest.Collector:
    """Return the node whose end is the end of `scope` for this test; outside of classes it is the test itself."""
    kinds: dict[str, Any] = {"class": pytest.Class, "module": pytest.Module, "session": pytest.Session}
    node = item.getparent(kinds[scope]) if scope in kinds else None
    return item if node is None else node
