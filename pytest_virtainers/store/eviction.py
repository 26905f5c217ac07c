"""What is in the store, what of it is in use, and what goes when there is too much."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_virtainers.engine.ownership import LABEL
from pytest_virtainers.store.locks import is_held, last_held
from pytest_virtainers.store.places import MOUNT, is_place, path
from pytest_virtainers.support.paths import locked

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_virtainers.engine.base import Engine
    from pytest_virtainers.store.volume import Workshop
    from pytest_virtainers.support.progress import Progress

USES = f"{LABEL}.uses"
"""The label by which a container names the place in the store from which it runs."""
STORE = f"{LABEL}.store"
"""The label with the location of that store: another one may have the same places."""

# The manifest's time is that of the last use (Workshop.manifest). What others remove meanwhile is left out.
_LIST = f"""
cd {MOUNT}
for manifest in guests/*/manifest.json templates/*/manifest.json; do
    place=${{manifest%/*}}
    {{
        size=$(du -sm "$place" | cut -f1) && [ "$size" ] &&
            used=$(stat -c %Y "$manifest") && facts=$(tr -d '\\n' <"$manifest")
    }} 2>/dev/null || continue
    printf '%s\\t%s\\t%s\\t%s\\n' "$place" "$size" "$used" "$facts"
done
"""

_REMOVE = """
scratch=$1 number=0
shift
for place; do
    number=$((number + 1))
    [ ! -e "$place" ] || mv "$place" "$scratch/$number" || exit
done
"""


@dataclass(frozen=True)
class Kept:
    """One thing in the store.

    Attributes:
        place: its folder: `guests/KEY` or `templates/KEY`.
        size_mib: the room that it takes.
        used: when it was last used, in seconds since 1970.
        manifest: its facts.
        in_use: whether a container runs from it, or a process will start some.
    """

    place: str
    size_mib: int
    used: int
    manifest: dict[str, Any]
    in_use: bool

    @property
    def base(self) -> str:
        """The place of the guest image that a template is made on; empty for a guest image."""
        return str(self.manifest.get("guest", "")) if self.place.startswith("templates/") else ""

    @property
    def origin(self) -> str:
        """The place of the template from which it was copied, and which it does not need; empty: there is none."""
        return str(self.manifest.get("origin", ""))

    @property
    def what(self) -> str:
        """Say what it is, for people."""
        facts = self.manifest
        if self.place.startswith("templates/"):
            size = f"{facts.get('ram')} MiB, {facts.get('cpus')} CPU, user {facts.get('user')}"
            return ", ".join(str(each) for each in (facts.get("image"), facts.get("architecture"), size) if each)
        return ", ".join(str(facts[name]) for name in ("suite", "name", "architecture") if facts.get(name))


def contents(engine: Engine, shop: Workshop) -> list[Kept]:
    """List what is in the store, the least recently used first; raises `StoreError` or `EngineError`."""
    labels = [each.labels for each in engine.containers(USES)]  # of those that run, or soon will
    uses = {each[USES] for each in labels if each.get(STORE, shop.location) == shop.location}
    rows = [line.split("\t", 3) for line in shop.shell(_LIST).split("\n") if line]
    found = [
        Kept(place, int(size), max(int(used), last_held(place)), _facts(manifest), place in uses or is_held(place))
        for place, size, used, manifest in rows
        if is_place(place)  # what else is in a directory is not ours
    ]
    return sorted(found, key=lambda each: each.used)


def _facts(manifest: str) -> dict[str, Any]:
    try:
        facts = json.loads(manifest)
    except ValueError:  # damaged: it is shown without words, and goes like everything else
        return {}
    return facts if isinstance(facts, dict) else {}


def surplus(kept: list[Kept], limit_mib: int, keep: Collection[str] = ()) -> list[Kept]:
    """Choose what goes so that the rest fits into `limit_mib`: the least recently used, never what is in use.

    A guest image is in use as long as a template that stays is made on it.

    Args:
        kept: the contents, the least recently used first.
        limit_mib: MiB that may stay.
        keep: places that stay in any case.
    """
    stay, chosen = list(kept), []
    while sum(each.size_mib for each in stay) > limit_mib:
        needed = {each.base for each in stay} | set(keep)
        gone = next((each for each in stay if not each.in_use and each.place not in needed), None)
        if gone is None:
            break
        stay.remove(gone)
        chosen.append(gone)
    return chosen


def prune(engine: Engine, shop: Workshop, limit_mib: int, keep: Collection[str] = ()) -> list[Kept]:
    """Remove `surplus`, and give it; raises as `contents` does."""
    with locked("store"):
        gone = surplus(contents(engine, shop), limit_mib, keep)
        remove(shop, [each.place for each in gone])
    return gone


def make_room(engine: Engine, shop: Workshop, limit_mib: int, progress: Progress) -> None:
    """Remove what does not fit any more, after something was made; raises as `contents` does."""
    for each in prune(engine, shop, limit_mib, keep=shop.made):
        progress.note(f"the store was full: removed {each.place} ({each.what}, {each.size_mib} MiB)")


def remove(shop: Workshop, places: Collection[str]) -> None:
    """Remove these places; raises `StoreError`."""
    if places:
        # As scratch first: what is left of one whose removal was interrupted counts no longer, and goes some day.
        with shop.scratch() as scratch:
            shop.shell(_REMOVE, scratch, *(path(place) for place in places))
        for place in places:
            shop.forget(place)
