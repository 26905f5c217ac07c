"""What is in the store, what of it is in use, and what goes when there is too much."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_virtainers.engine.owner import LABEL
from pytest_virtainers.store import MOUNT

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_virtainers.engine.client import Engine
    from pytest_virtainers.store import Workshop

USES = f"{LABEL}.uses"
"""The label by which a container names the place in the store from which it runs."""

# The manifest's time is that of the last use (Workshop.manifest).
_LIST = f"""
cd {MOUNT}
for manifest in guests/*/manifest.json templates/*/manifest.json; do
    [ -e "$manifest" ] || continue
    place=${{manifest%/*}}
    printf '%s\\t%s\\t%s\\t' "$place" "$(du -sm "$place" | cut -f1)" "$(stat -c %Y "$manifest")"
    tr -d '\\n' <"$manifest"
    echo
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
        in_use: whether a container runs from it, or a template in the store is made on it.
    """

    place: str
    size_mib: int
    used: int
    manifest: dict[str, Any]
    in_use: bool

    @property
    def what(self) -> str:
        """Say what it is, for people."""
        facts = self.manifest
        if self.place.startswith("templates/"):
            return f"{facts.get('image')}, {facts.get('ram')} MiB, {facts.get('cpus')} CPU, user {facts.get('user')}"
        return str(facts.get("suite") or facts.get("name") or "")


def contents(engine: Engine, shop: Workshop) -> list[Kept]:
    """List what is in the store, the least recently used first; raises `StoreError` or `EngineError`."""
    with engine.failures("asking which containers run"):
        running = engine.api.containers(filters={"label": [USES]})
    uses = {(each.get("Labels") or {}).get(USES) for each in running}
    rows = [line.split("\t", 3) for line in shop.shell(_LIST).splitlines()]
    manifests = {place: _facts(manifest) for place, _, _, manifest in rows}
    uses |= {manifest.get("guest") for place, manifest in manifests.items() if place.startswith("templates/")}
    found = [Kept(place, int(size), int(used), manifests[place], place in uses) for place, size, used, _ in rows]
    return sorted(found, key=lambda each: each.used)


def _facts(manifest: str) -> dict[str, Any]:
    try:
        facts = json.loads(manifest)
    except ValueError:  # damaged: it is shown without words, and goes like everything else
        return {}
    return facts if isinstance(facts, dict) else {}


def surplus(kept: list[Kept], limit_mib: int, keep: Collection[str] = ()) -> list[Kept]:
    """Choose what goes so that the rest fits into `limit_mib`: the least recently used, never what is in use.

    Args:
        kept: the contents, the least recently used first.
        limit_mib: MiB that may stay.
        keep: places that stay in any case.
    """
    total, chosen = sum(each.size_mib for each in kept), []
    for each in kept:
        if total <= limit_mib:
            break
        if not each.in_use and each.place not in keep:
            chosen.append(each)
            total -= each.size_mib
    return chosen


def remove(shop: Workshop, places: Collection[str]) -> None:
    """Remove these places; raises `StoreError`."""
    if places:
        shop.shell("rm -rf " + " ".join(f"{MOUNT}/{place}" for place in places))
