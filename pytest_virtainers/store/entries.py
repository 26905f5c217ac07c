"""The entries of the store: list them, with their use, and remove them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_virtainers.engine.ownership import LABEL
from pytest_virtainers.store.locks import is_locked, last_locked
from pytest_virtainers.store.places import MOUNT, is_place, path

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_virtainers.store.volume import OpenStore

USES = f"{LABEL}.uses"
"""The label with the place in the store from which a container runs."""
STORE = f"{LABEL}.store"
"""The label with the location of that store; another store may have the same places."""

# The manifest's time is that of the last use (OpenStore.manifest). Entries that others just remove are skipped.
_LIST = """
import contextlib, glob, json, os, sys
def fail(error):
    raise error
os.chdir(sys.argv[1])
for manifest in glob.glob("guests/*/manifest.json") + glob.glob("templates/*/manifest.json"):
    place = os.path.dirname(manifest)
    with contextlib.suppress(OSError), open(manifest, errors="replace") as file:
        files = [os.path.join(folder, name) for folder, _, names in os.walk(place, onerror=fail) for name in names]
        size = sum(os.lstat(each).st_blocks for each in files)
        used, facts = os.stat(manifest).st_mtime, file.read()
        print(json.dumps([place, -(-size // 2048), int(used), facts]))
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
class Entry:
    """A guest image or template in the store.

    Attributes:
        place: its folder: `guests/KEY` or `templates/KEY`.
        size_mib: its size.
        used: time of the last use, in seconds since 1970.
        manifest: the content of its `manifest.json`.
        in_use: whether a container runs from it, or a process has locked it.
    """

    place: str
    size_mib: int
    used: int
    manifest: dict[str, Any]
    in_use: bool

    @property
    def base(self) -> str:
        """The place of the guest image below a template; empty for a guest image."""
        return str(self.manifest.get("guest", "")) if self.place.startswith("templates/") else ""

    @property
    def origin(self) -> str:
        """The place of the template from which it was copied, and which it does not need; empty if there is none."""
        return str(self.manifest.get("origin", ""))

    @property
    def what(self) -> str:
        """A description for people."""
        facts = self.manifest
        if self.place.startswith("templates/"):
            size = f"{facts.get('ram')} MiB, {facts.get('cpus')} CPU, user {facts.get('user')}"
            return ", ".join(str(each) for each in (facts.get("image"), facts.get("architecture"), size) if each)
        return ", ".join(str(facts[name]) for name in ("suite", "name", "architecture") if facts.get(name))


def contents(store: OpenStore) -> list[Entry]:
    """List the entries of the store, the least recently used first; raise `StoreError` or `EngineError`."""
    labels = [each.labels for each in store.engine.containers(USES)]
    uses = {each[USES] for each in labels if each.get(STORE, store.location) == store.location}
    listed = store.shell('exec python3 -I -S -c "$1" "$2"', _LIST, MOUNT)
    rows = [json.loads(line) for line in listed.splitlines()]
    found = [
        Entry(place, size, max(used, last_locked(place)), _facts(manifest), place in uses or is_locked(place))
        for place, size, used, manifest in rows
        if is_place(place)  # a directory may have other files
    ]
    return sorted(found, key=lambda each: each.used)


def _facts(manifest: str) -> dict[str, Any]:
    try:
        facts = json.loads(manifest)
    except ValueError:  # a damaged entry has no description, and is evicted like any other
        return {}
    return facts if isinstance(facts, dict) else {}


def remove(store: OpenStore, places: Collection[str]) -> None:
    """Remove these places; raise `StoreError`."""
    if places:
        # Move them to scratch first: the rest of an interrupted removal is not an entry any more, and is swept later.
        with store.scratch() as scratch:
            store.shell(_REMOVE, scratch, *(path(place) for place in places))
        for place in places:
            store.forget(place)
