"""Predict the next VM that the rest of the run will request."""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.errors import SpecError
from pytest_virtainers.plugin.markers import arguments, scope_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SEVERAL = frozenset({"vms", "vm_factory"})
"""Fixtures whose VMs may look each other up by name, and must not find a VM that is not requested yet."""

_FIXTURE = "vm"
_AHEAD = 20  # tests to look at, as many may share a VM that already exists
_POSITIONS_KEY: pytest.StashKey[tuple[dict[pytest.Item, int], list[int]]] = pytest.StashKey()


def next_spec(
    item: pytest.Item,
    following: pytest.Item | None,
    base: Iterable[Mapping[str, Any]],
    is_there: Callable[[pytest.Item | pytest.Collector, Spec], bool],
) -> tuple[Spec | None, str]:
    """Return the spec of the next VM that a test after `item` needs, and that test's ID, or `None` and no ID.

    Args:
        item: the running test.
        following: the next test (pytest's `nextitem`); `None` after the last.
        base: the arguments under the markers of the last test.
        is_there: returns whether a node of the collection already shares such a VM.
    """
    if following is None or item.session.shouldstop or item.session.shouldfail:
        return None, ""
    for each in _after(item, following):
        if _is_skipped(each):
            continue
        if SEVERAL & {*_fixtures(each)}:
            break
        try:
            spec = merge(*base, *arguments(each))
        except SpecError:  # the test itself will report it
            continue
        if not is_there(scope_node(each, spec.scope), spec):
            return spec, each.nodeid
    return None, ""


def _after(item: pytest.Item, following: pytest.Item) -> list[pytest.Item]:
    """Return tests after `item` that need VMs; a worker of pytest-xdist knows only the next test."""
    if hasattr(item.config, "workerinput"):
        return [following] if _is_wanting(following) else []
    items = item.session.items
    if _POSITIONS_KEY not in item.session.stash:
        wanting = [number for number, each in enumerate(items) if _is_wanting(each)]
        item.session.stash[_POSITIONS_KEY] = ({each: number for number, each in enumerate(items)}, wanting)
    positions, wanting = item.session.stash[_POSITIONS_KEY]
    start = bisect_right(wanting, positions.get(item, len(items)))
    return [items[number] for number in islice(wanting, start, start + _AHEAD)]


def _is_wanting(item: pytest.Item) -> bool:
    return bool({_FIXTURE, *SEVERAL} & {*_fixtures(item)})


def _fixtures(item: pytest.Item) -> tuple[str, ...]:
    return tuple(getattr(item, "fixturenames", ()))  # doctests have none


def _is_skipped(item: pytest.Item) -> bool:
    """Return whether markers may skip a test; a condition that is a string counts as true."""
    unrun = (mark.kwargs.get("run", True) is False for mark in item.iter_markers("xfail"))
    conditions = (
        condition
        for mark in item.iter_markers("skipif")
        for condition in (*mark.args, mark.kwargs.get("condition", False))
    )
    return item.get_closest_marker("skip") is not None or any(unrun) or any(conditions)
