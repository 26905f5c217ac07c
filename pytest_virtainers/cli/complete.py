"""Shell completion with existing names, or without any if they cannot be determined."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.cli.common import settings
from pytest_virtainers.errors import VirtainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import click
    from click.shell_completion import CompletionItem

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completer(names: Callable[[click.Context], Iterable[tuple[str, str]]]) -> Completer:
    """Return a completer for click from a function that returns names with descriptions."""

    def complete(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        try:
            return [CompletionItem(name, help=about) for name, about in names(context) if name.startswith(begun)]
        except VirtainerError:
            return []

    return complete


@_completer
def vm_names(_context: click.Context) -> Iterable[tuple[str, str]]:
    """Return the names of detached VMs."""
    from pytest_virtainers import detached

    with detached.connected(settings()) as engine:
        return [(each.name, each.image) for each in detached.list_all(engine)]


@_completer
def image_names(_context: click.Context) -> Iterable[tuple[str, str]]:
    """Return the names in the catalogue."""
    from pytest_virtainers.guests.catalogue import catalogue

    return [(each, "") for each in catalogue()]


@_completer
def snapshot_tags(context: click.Context) -> Iterable[tuple[str, str]]:
    """Return the snapshots of the VM named by the previous word."""
    from pytest_virtainers import detached
    from pytest_virtainers.support.progress import SILENT

    with detached.attached(settings(), context.params["name"], SILENT) as vm:
        return [(each, "") for each in vm.snapshots()]


@_completer
def store_places(_context: click.Context) -> Iterable[tuple[str, str]]:
    """Return the entries of the store."""
    from pytest_virtainers import detached
    from pytest_virtainers.engine import runtime_image
    from pytest_virtainers.engine.reaper import Reaper
    from pytest_virtainers.store.entries import contents
    from pytest_virtainers.store.volume import open_store

    ours, image = settings(), runtime_image.reference()
    with detached.connected(ours) as engine:
        if not runtime_image.present(engine):
            return []
        run_id = f"complete-{os.getpid()}"
        with Reaper(engine, run_id), open_store(engine, ours.store, image, run_id) as store:
            return [(each.place, each.what) for each in contents(store)]


def words(*offered: str) -> Completer:
    """Return a completer that offers some words."""
    return _completer(lambda _context: [(each, "") for each in offered])


def image_names_or_files(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete names in the catalogue, or local files."""
    from click.shell_completion import CompletionItem

    return image_names(context, parameter, begun) or [CompletionItem(begun, type="file")]


def files_or_vms(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete local files, or `NAME:` of detached VMs."""
    from click.shell_completion import CompletionItem

    names = [] if "/" in begun else vm_names(context, parameter, begun)
    if not names:
        return [CompletionItem(begun, type="file")]
    here = sorted(each.name for each in Path().iterdir())
    # bash and zsh add a space, so the user has to type the path in the guest.
    vms = [CompletionItem(f"{each.value}:", help=each.help) for each in names]
    return [*vms, *(CompletionItem(each) for each in here if each.startswith(begun))]
