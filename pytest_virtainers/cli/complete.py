"""What the shell offers for a word that is begun: names that are there now; none when they cannot be had."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pytest_virtainers.cli.common import settings
from pytest_virtainers.errors import VirtainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from click.shell_completion import CompletionItem

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

T = TypeVar("T", bound="Callable[..., Any]")


def _completer(names: Callable[[click.Context], Iterable[tuple[str, str]]]) -> Completer:
    """Make one for click, of a function that gives names and what is said of them."""

    def complete(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        try:
            return [CompletionItem(name, help=about) for name, about in names(context) if name.startswith(begun)]
        except VirtainerError:
            return []

    return complete


@_completer
def machine_names(_context: click.Context) -> Iterable[tuple[str, str]]:
    """Machines that stay."""
    from pytest_virtainers import detached

    with detached.connected(settings()) as engine:
        return [(each.name, each.image) for each in detached.list_all(engine)]


@_completer
def image_names(_context: click.Context) -> Iterable[tuple[str, str]]:
    """Names of the catalogue."""
    from pytest_virtainers.guests.catalogue import catalogue

    return [(each, "") for each in catalogue()]


@_completer
def snapshot_tags(context: click.Context) -> Iterable[tuple[str, str]]:
    """Snapshots of the machine whose name stands before."""
    from pytest_virtainers import detached
    from pytest_virtainers.support.progress import SILENT

    with detached.attached(settings(), context.params["name"], SILENT) as vm:
        return [(each, "") for each in vm.snapshots()]


@_completer
def store_places(_context: click.Context) -> Iterable[tuple[str, str]]:
    """What is in the store."""
    from pytest_virtainers import detached
    from pytest_virtainers.engine import runtime_image
    from pytest_virtainers.engine.reaper import Reaper
    from pytest_virtainers.store import eviction
    from pytest_virtainers.store.volume import workshop

    ours, image = settings(), runtime_image.reference()
    with detached.connected(ours) as engine:
        if not runtime_image.present(engine):
            return []
        run_id = f"complete-{os.getpid()}"
        with Reaper(engine, run_id), workshop(engine, ours.store, image, run_id) as shop:
            return [(each.place, each.what) for each in eviction.contents(shop)]


def option_of(name: str, words: str, about: str) -> Callable[[T], T]:
    """Make an option that takes one of some words, such as `on|off`; who reads it checks it."""
    offered = _completer(lambda _context: [(each, "") for each in words.split("|")])
    return click.option(name, metavar=words, shell_complete=offered, help=about)


def image_names_or_files(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer names of the catalogue, or files of this computer."""
    from click.shell_completion import CompletionItem

    return image_names(context, parameter, begun) or [CompletionItem(begun, type="file")]


def files_or_machines(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer files of this computer, or `NAME:` of machines."""
    from click.shell_completion import CompletionItem

    names = [] if "/" in begun else machine_names(context, parameter, begun)
    if not names:
        return [CompletionItem(begun, type="file")]
    here = sorted(each.name for each in Path().iterdir())
    # bash and zsh put a space after a word of ours, so the path in the guest is begun by hand.
    machines = [CompletionItem(f"{each.value}:", help=each.help) for each in names]
    return [*machines, *(CompletionItem(each) for each in here if each.startswith(begun))]
