"""Options that describe a VM, one for each argument, made from the declaration of the arguments."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pytest_virtainers.cli.common import note
from pytest_virtainers.cli.complete import words
from pytest_virtainers.config.arguments import ARGUMENTS, Argument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T", bound="Callable[..., Any]")

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

OF_VMS = tuple(each for each in ARGUMENTS.values() if each.command_line and not each.sharing and each.name != "image")
"""The arguments of a VM that need neither Python nor tests, except its image."""

OF_TEMPLATES = tuple(each for each in OF_VMS if each.template)
"""The arguments that determine which template a VM has, and how it is made."""


def options(arguments: Iterable[Argument]) -> Callable[[T], T]:
    """Return a decorator that adds the options of these arguments to a command."""

    def add(command: T) -> T:
        for each in reversed([*arguments]):
            command = _option(each)(command)
        return command

    return add


def seed_iso(command: T) -> T:
    """Add the option for a seed to a command that has the options of a VM."""
    about = "A cloud-init seed of your own, to which the plugin's key is added."
    return click.option("--seed-iso", type=_FILE, metavar="FILE", help=about)(command)


def read(argument: Argument, written: Any) -> Any:
    """Return the value of an argument that was written on the command line; raises `UsageError`."""
    try:
        return argument.read(written) if argument.read else written
    except ValueError as error:
        raise click.UsageError(f"{argument.command_option} {error}") from None


def arguments(*, seed_iso: Path | None = None, cold: bool = False, **given: Any) -> dict[str, Any]:
    """Return the checked arguments that the options stand for; raises `UsageError`, which names the option."""
    if cold and given.get("template") is not None:
        raise click.UsageError("--cold is --template off: leave out one of them")
    found = {name: read(ARGUMENTS[name], each) for name, each in given.items() if each not in {None, ()}}
    if "internet" in found and "mode" in found.get("network", {}):
        raise click.UsageError("--internet chooses a network's mode, and --network has one: leave out one of them")
    if cold:
        found["template"] = "off"
    if seed_iso is not None:
        found |= _seed(seed_iso, found)
    return {name: _checked(ARGUMENTS[name], value, given.get(name)) for name, value in found.items()}


def _checked(argument: Argument, value: Any, written: Any) -> Any:
    try:
        return argument.parse(value)
    except ValueError as error:
        option = "IMAGE" if argument.name == "image" else argument.command_option
        words = map(str, written) if argument.each else [str(written)]
        place = f"--seed-iso: {argument.name}" if written is None else f"{option} {shlex.join(words)}"
        raise click.UsageError(f"{place}: {error}") from None


def _option(argument: Argument) -> Callable[[T], T]:
    about = f"{argument.help[0].upper()}{argument.help[1:]}."
    about += " Can be repeated." if argument.each else ""
    about += f"  [default: {argument.default}]" if argument.default else ""
    kind = argument.kind
    offered = [each for each in kind.metavar.split("|") if each.islower()]  # the others are placeholders
    return click.option(
        argument.command_option,
        argument.name,
        metavar=kind.metavar,
        type=_FILE if kind.metavar == "FILE" else None,
        shell_complete=words(*offered) if offered else None,
        multiple=bool(argument.each),
        help=about,
    )


def _seed(path: Path, given: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments for which a seed stands; raises `UsageError`."""
    from pytest_virtainers.launching import cloud_init

    for name in ("user_data", "meta_data"):
        if name in given:
            raise click.UsageError(f"--seed-iso brings its own: leave out {ARGUMENTS[name].command_option}")
    found, ignored = cloud_init.unpack(path)
    if ignored:
        note(f"{path}: ignored {', '.join(ignored)}: only user-data and meta-data are used")
    return found
