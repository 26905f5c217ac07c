"""Commands for the store of guest images and templates."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pytest_virtainers.cli.common import answer, as_json, note, progress, settings, show, size
from pytest_virtainers.cli.complete import store_places
from pytest_virtainers.errors import StoreError

if TYPE_CHECKING:
    from pytest_virtainers.launching.integrity import Checked
    from pytest_virtainers.store.volume import OpenStore


@click.group
def store() -> None:
    """Manage the store of guest images and templates."""


@store.command("ls")
@as_json
def ls(as_json: bool) -> None:
    """List the entries, least recently used first.

    \b
    For example:
      virtainers store ls --json | jq 'map(.size_mib) | add'
    """  # noqa: D301
    from pytest_virtainers.launching.build import build_launcher
    from pytest_virtainers.store.entries import contents

    ours = settings()
    with build_launcher(ours, progress()) as launcher, launcher.store.open() as opened:
        entries = contents(opened)
    rows = [
        {
            "place": each.place,
            "size_mib": each.size_mib,
            "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used)),
            "in_use": each.in_use,
            "what": each.what,
        }
        for each in entries
    ]
    if as_json:
        show(rows, as_json=True)
        return
    table = [
        {**row, "size": f"{row['size_mib']} MiB", "": "in use" if row["in_use"] else "", "last used": row["used"]}
        for row in rows
    ]
    show(table, as_json=False, columns=("place", "size", "last used", "", "what"))
    answer(f"{sum(each.size_mib for each in entries)} MiB in {ours.store}, of {ours.store_limit} MiB")


@store.command("rm")
@click.argument("places", nargs=-1, required=True, shell_complete=store_places)
def rm(places: tuple[str, ...]) -> None:
    """Remove entries that are not in use; PLACES are shown by store ls: guests/… or templates/….

    \b
    For example:
      virtainers store rm templates/ebc12a092c59044f
    """  # noqa: D301
    from pytest_virtainers.launching.build import build_launcher
    from pytest_virtainers.store.entries import contents, remove
    from pytest_virtainers.support.paths import locked

    with build_launcher(settings(), progress()) as launcher, launcher.store.open() as opened, locked("store"):
        entries = contents(opened)
        known = {each.place: each for each in entries}
        for place in places:
            if place not in known:
                raise StoreError(f"{place} is not in the store. List its entries: virtainers store ls")
            if known[place].in_use:
                raise StoreError(f"{place} is in use by a VM or by a test run")
            if made_on_it := [each.place for each in entries if each.base == place and each.place not in places]:
                raise StoreError(f"{place} is needed by {made_on_it[0]}. Remove that, too")
        remove(opened, places)


@store.command("prune")
@click.option("--limit", metavar="SIZE", callback=size, help="Such as 5G, or 0 (default: the store-limit setting).")
def prune(limit: int | None) -> None:
    """Remove the least recently used entries until the rest fits.

    \b
    For example:
      virtainers store prune --limit 5G
      virtainers store prune --limit 0         # everything that is not in use
    """  # noqa: D301
    from pytest_virtainers.launching.build import build_launcher
    from pytest_virtainers.store.eviction import prune

    ours = settings()
    with build_launcher(ours, progress()) as launcher, launcher.store.open() as opened:
        gone = prune(opened, ours.store_limit if limit is None else limit)
    for each in gone:
        answer(f"removed {each.place} ({each.size_mib} MiB)")


@store.command("verify")
@click.argument("places", nargs=-1, shell_complete=store_places)
@click.option("--remove", is_flag=True, help="Remove damaged entries, and the templates that need them.")
@as_json
def verify(places: tuple[str, ...], remove: bool, as_json: bool) -> int:
    """Compare the files of guest images and templates with the digests that they had when they were saved.

    Without PLACES, all entries are compared. Exit code 1: an entry is damaged, or could not be removed.

    \b
    For example:
      virtainers store verify
      virtainers store verify templates/ebc12a092c59044f --json
      virtainers store verify --remove         # damaged entries are created again when they are needed
    """  # noqa: D301
    from pytest_virtainers.launching import integrity
    from pytest_virtainers.launching.build import build_launcher
    from pytest_virtainers.store.entries import contents

    rows: list[integrity.Checked] = []
    with build_launcher(settings(), progress()) as launcher, launcher.store.open() as opened:
        known = sorted(each.place for each in contents(opened))
        if unknown := [place for place in places if place not in known]:
            raise StoreError(f"{unknown[0]} is not in the store. List its entries: virtainers store ls")
        for place in places or known:
            with progress().step(f"reading {place}"):
                found = [*integrity.read(opened.container, [place])]
            rows += found
            if not as_json:
                _show_checked(place, found)
        damaged = {each.place for each in rows if each.damaged}
        remaining = remove_damaged(opened, damaged) if remove and damaged else damaged
    if as_json:
        show([{**vars(each), "damaged": each.damaged} for each in rows], as_json=True)
    elif remaining and not remove:
        print("", "To remove damaged entries, which are created again: virtainers store verify --remove", sep="\n")
    return 1 if remaining else 0


def _show_checked(place: str, found: list[Checked]) -> None:
    """Print one line for an undamaged entry, or one for each damaged file."""
    damaged = [str(each) for each in found if each.damaged or each.was is None]
    print(*(damaged or [f"{place}: unchanged"]), sep="\n", flush=True)


def remove_damaged(opened: OpenStore, damaged: set[str]) -> set[str]:
    """Remove damaged entries and the entries made or copied from them; return those that are in use."""
    from pytest_virtainers.store.entries import contents, remove
    from pytest_virtainers.support.paths import locked

    with locked("store"):
        there = contents(opened)
        used = {each.place for each in there if each.in_use}
        needed = {each.base for each in there if each.in_use}
        stay = damaged & (used | needed)
        gone = [each for each in there if {each.place, each.base, each.origin} & (damaged - stay) and not each.in_use]
        remove(opened, [each.place for each in gone])
    for each in gone:
        note(f"removed {each.place} ({each.size_mib} MiB)")
    for place in sorted(stay):
        note(f"{place} is damaged, but in use by a VM or by a test run. End that first")
    return stay


COMMANDS = (store,)
