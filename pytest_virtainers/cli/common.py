"""What several commands share: their settings, how they show progress and tables, and words for a VM behind `--`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click

from pytest_virtainers.config import parsing
from pytest_virtainers.config.arguments import meant_by
from pytest_virtainers.config.settings import Source, environment, resolve
from pytest_virtainers.errors import SpecError, UsageError
from pytest_virtainers.support.progress import Progress, fitted
from pytest_virtainers.terminal import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.vm.vm import VM

OPTIONS = "the options"
"""The source of arguments, in messages."""

WORDS = "words"
"""The parameter with the command for a VM."""

as_json = click.option("--json", "as_json", is_flag=True, help="For programs: JSON.")


def settings(**options: str | None) -> Settings:
    """Return the settings, from options of the command and the environment; raise `SpecError` for an invalid one."""
    given = Source(lambda setting: f"--{setting.name.replace('_', '-')}", lambda setting: options.get(setting.name))
    return resolve([given, environment(os.environ)])


def progress() -> Progress:
    """Return a progress display on stderr, which redraws lines on a terminal."""
    live = sys.stderr.isatty()

    def write(text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal was closed; the cleanup continues
            sys.stderr.write(fitted(text, os.get_terminal_size(sys.stderr.fileno()).columns if live else 0))
            sys.stderr.flush()

    return Progress(write, live=live)


def note(text: str) -> None:
    """Print a message to stderr."""
    with contextlib.suppress(OSError):
        print(printable(f"virtainers: {text}"), file=sys.stderr, flush=True)


def answer(text: str) -> None:
    """Print a result, escaped for a terminal."""
    print(printable(text))


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool, columns: Sequence[str] = ()) -> None:
    """Print rows, as JSON with all fields, or as a table with some columns."""
    if as_json:
        print(json.dumps([dict(row) for row in rows], indent=2))
        return
    cells = [
        [column.upper() for column in columns],
        *([one_line(str(row[column])) for column in columns] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def check_ssh() -> None:
    """Raise `UsageError` if OpenSSH is not installed."""
    if shutil.which("ssh") is None:
        raise UsageError("ssh is not installed, and opens the shell in the VM. Install OpenSSH's client")


def ssh(vm: VM, line: str = "", *, terminal: bool = False) -> int:
    """Open a shell in a VM with OpenSSH, or run a shell line there; return the exit code."""
    command, *words = shlex.split(vm.access.ssh_command)
    with subprocess.Popen([command, *(["-t"] if terminal else []), *words, *([line] if line else [])]) as client:
        try:
            return client.wait()
        except BaseException:
            client.terminate()  # so that it restores the terminal
            raise


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Report errors of the block as wrong usage."""
    try:
        yield
    except (SpecError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def size(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """Parse a size with a unit and return MiB."""
    try:
        return None if value is None else int(parsing.size_mib(least=0)(value))
    except ValueError as error:
        raise click.BadParameter(f"{value}: {error}") from error


class Command(click.Command):
    """A command that suggests an option for a synonym of its name, as `--ram` for `--memory`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options; raises `UsageError`."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            if option := self.meant(error):
                raise click.NoSuchOption(
                    name, f"No such option {name!r}. Did you mean {option!r}?", ctx=ctx
                ) from None
            raise

    def meant(self, error: click.NoSuchOption) -> str | None:
        """Return the option of which the unknown word is a synonym."""
        name = meant_by(error.option_name.lstrip("-").replace("-", "_"))
        return next((each.opts[0] for each in self.params if each.name == name), None)


class GuestCommand(Command):
    """A command that passes all words after the first `--` to a VM."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Split the arguments at the first `--`."""
        at = args.index("--") if "--" in args else len(args)
        try:
            rest = super().parse_args(ctx, args[:at])
        except click.UsageError as error:
            unknown = isinstance(error, click.NoSuchOption) and not self.meant(error)
            misplaced = unknown or "unexpected extra argument" in error.message
            if at == len(args) and misplaced:
                hint = "put a command for the VM after --"
                raise click.UsageError(f"{error.format_message().rstrip('.')}; {hint}", ctx) from None
            raise
        ctx.params[WORDS] = tuple(args[at + 1 :])
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Add the words after `--` to the usage."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]
