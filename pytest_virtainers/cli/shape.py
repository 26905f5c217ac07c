"""The options that say what a VM is to be, shared by `run` and `build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pytest_virtainers.cli.common import tell
from pytest_virtainers.cli.complete import option_of
from pytest_virtainers.config.settings import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T", bound="Callable[..., Any]")

_USUAL = resolve([]).shape  # unless VIRTAINER_X says otherwise
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--ram", metavar="SIZE", help=f"Memory, such as 2G.  [default: {_USUAL['ram']}M]"),
    click.option("--cpus", metavar="N", help=f"Number of processors.  [default: {_USUAL['cpus']}]"),
    click.option("--disk", metavar="SIZE", help=f"Size of the disk, such as 20G.  [default: {_USUAL['disk']}M]"),
    click.option("--user", help="Login user."),
    click.option("--key", "keys", type=_FILE, multiple=True, help="A public key that may log in, too."),
    click.option("--user-data", type=_FILE, help="Cloud-config for cloud-init."),
    click.option("--meta-data", type=_FILE, help="Meta-data for cloud-init, over ours."),
    click.option("--seed-iso", type=_FILE, help="A cloud-init seed of your own, to which our key is added."),
    click.option("--package", "packages", multiple=True, metavar="NAME", help="Install this; can be given again."),
    option_of("--internet", "on|off", "Off: nothing leaves the VM's network."),
    option_of("--accel", "kvm|tcg|auto", "How it is run."),
    option_of("--arch", "amd64|arm64|auto", "Its processor's architecture."),
    option_of("--firmware", "bios|uefi|auto", "From which it boots."),
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="OS_VARIANT=win10, say; can be given again."),
)


def options(command: T) -> T:
    """Add these options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def arguments(
    *,
    keys: tuple[Path, ...],
    packages: tuple[str, ...],
    env: tuple[str, ...],
    seed_iso: Path | None,
    cold: bool,
    **given: Any,
) -> dict[str, Any]:
    """Return the arguments of the marker that the options stand for."""
    if seed_iso is not None:
        given |= _seed(seed_iso, given)
    lists = {"packages": list(packages), "authorized_keys": list(keys)}
    return {**given, **lists, "env": variables(env), **({"template": False} if cold else {})}


def _seed(path: Path, given: Mapping[str, object]) -> dict[str, Any]:
    """Read what `--seed-iso` was given."""
    from pytest_virtainers.launching import cloud_init

    for option in ("user_data", "meta_data"):
        if given[option] is not None:
            raise click.UsageError(f"--seed-iso brings its own: leave out --{option.replace('_', '-')}")
    read, passed_over = cloud_init.unpack(path)
    if passed_over:
        tell(f"{path}: {', '.join(passed_over)}: passed over, only user-data and meta-data are taken")
    return read


def variables(pairs: tuple[str, ...]) -> dict[str, str]:
    """Read what `--env` was given."""
    parts = [each.partition("=") for each in pairs]
    if senseless := [each for each, (_, sign, _) in zip(pairs, parts, strict=True) if not sign]:
        raise click.UsageError(f"--env {senseless[0]}: NAME=VALUE is needed")
    return {name: value for name, _, value in parts}
