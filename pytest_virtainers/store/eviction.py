"""Eviction: which entries to remove when the store outgrows its limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.store.entries import contents, remove
from pytest_virtainers.support.paths import locked

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_virtainers.store.entries import Entry
    from pytest_virtainers.store.volume import OpenStore
    from pytest_virtainers.support.progress import Progress


def surplus(entries: list[Entry], limit_mib: int, keep: Collection[str] = ()) -> list[Entry]:
    """Choose entries to remove so that the rest fits into `limit_mib`: the least recently used, none in use.

    A guest image is in use while a template on it stays.

    Args:
        entries: the contents, the least recently used first.
        limit_mib: the limit in MiB.
        keep: places that stay in any case.
    """
    stay, chosen = list(entries), []
    while sum(each.size_mib for each in stay) > limit_mib:
        needed = {each.base for each in stay} | set(keep)
        gone = next((each for each in stay if not each.in_use and each.place not in needed), None)
        if gone is None:
            break
        stay.remove(gone)
        chosen.append(gone)
    return chosen


def prune(store: OpenStore, limit_mib: int, keep: Collection[str] = ()) -> list[Entry]:
    """Remove and return the `surplus`; errors are those of `contents`."""
    with locked("store"):
        gone = surplus(contents(store), limit_mib, keep)
        remove(store, [each.place for each in gone])
    return gone


def make_room(store: OpenStore, limit_mib: int, progress: Progress) -> None:
    """Remove what exceeds the limit after new entries were made; errors are those of `contents`."""
    for each in prune(store, limit_mib, keep=store.made):
        progress.note(f"the store was full: removed {each.place} ({each.what}, {each.size_mib} MiB)")
