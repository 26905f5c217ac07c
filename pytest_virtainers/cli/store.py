"""The store: guest images and templates that are kept."""

from __future__ import annotations

import time

import click

from pytest_virtainers.cli.common import answer, as_json, progress, settings, show, size
from pytest_virtainers.cli.complete import store_places
from pytest_virtainers.errors import StoreError


@click.group
def store() -> None:
    """Look at the images and templates that are kept, and remove some."""


@store.command("ls")
@as_json
def ls(as_json: bool) -> None:
    """List them, the least recently used first.

    \b
    For example:
      virtainers store ls --json | jq 'map(.size_mib) | add'
    """  # noqa: D301
    from pytest_virtainers import housekeeping
    from pytest_virtainers.manager import Manager

    ours = settings()
    with Manager(ours, progress()) as manager, manager.store() as shop:
        kept = housekeeping.contents(manager.engine, shop)
    rows = [
        {
            "place": each.place,
            "size_mib": each.size_mib,
            "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used)),
            "in_use": each.in_use,
            "what": each.what,
        }
        for each in kept
    ]
    if as_json:
        show(rows, as_json=True)
        return
    table = [
        {**row, "size": f"{row['size_mib']} MiB", "": "in use" if row["in_use"] else "", "last used": row["used"]}
        for row in rows
    ]
    show(table, as_json=False, columns=("place", "size", "last used", "", "what"))
    answer(f"{sum(each.size_mib for each in kept)} MiB in {ours.store}, of {ours.store_limit} MiB")


@store.command("rm")
@click.argument("places", nargs=-1, required=True, shell_complete=store_places)
def rm(places: tuple[str, ...]) -> None:
    """Remove some that are not in use; PLACES are as `store ls` shows them: guests/… or templates/….

    \b
    For example:
      virtainers store rm templates/ebc12a092c59044f
    """  # noqa: D301
    from pytest_virtainers import housekeeping
    from pytest_virtainers.manager import Manager
    from pytest_virtainers.paths import locked

    with Manager(settings(), progress()) as manager, manager.store() as shop, locked("store"):
        kept = housekeeping.contents(manager.engine, shop)
        known = {each.place: each for each in kept}
        for place in places:
            if place not in known:
                raise StoreError(f"{place} is not in the store: see virtainers store ls")
            if known[place].in_use:
                raise StoreError(f"{place} is in use by a VM or by a test run")
            if made_on_it := [each.place for each in kept if each.base == place and each.place not in places]:
                raise StoreError(f"{place} is needed by {made_on_it[0]}, which is made on it: remove that, too")
        housekeeping.remove(shop, places)


@store.command("prune")
@click.option("--limit", metavar="SIZE", callback=size, help="Such as 5G, or 0 (default: the store-limit setting).")
def prune(limit: int | None) -> None:
    """Remove the least recently used ones until the rest fits.

    \b
    For example:
      virtainers store prune --limit 5G
      virtainers store prune --limit 0         # whatever is not in use
    """  # noqa: D301
    from pytest_virtainers import housekeeping
    from pytest_virtainers.manager import Manager

    ours = settings()
    with Manager(ours, progress()) as manager, manager.store() as shop:
        gone = housekeeping.prune(manager.engine, shop, ours.store_limit if limit is None else limit)
    for each in gone:
        answer(f"removed {each.place} ({each.size_mib} MiB)")


COMMANDS = (store,)
