"""Settings of a run: which source wins.

Every setting is `--virtainer-X`, `VIRTAINER_X` in the environment and `virtainer_X` in the ini file; the first
of these that has a value wins, then the built-in default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config.arguments import DEFAULTS, SETTINGS, Argument
from pytest_virtainers.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_virtainers.config import reach


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        shape: the defaults of a `Spec`, in its units.
        store_limit: in MiB.
        max_ram: a function from the memory of the engine's host to that of all VMs, both in MiB.
        retention: evidence folders kept per test; `None`: all.
    """

    shape: Mapping[str, Any]
    engine: str
    store: str
    store_limit: int
    prefetch: bool
    max_ram: Callable[[int], int]
    reach: tuple[reach.Net, ...]
    keep: str
    artifacts: str
    keep_memory: bool
    capture: str
    retention: int | None
    hold: bool
    echo: bool
    durations: bool
    missing: str


@dataclass(frozen=True)
class Source:
    """A source of settings: returns the name that a setting has there, and its value (`None`: not given)."""

    called: Callable[[Argument], str]
    lookup: Callable[[Argument], str | None]


def resolve(sources: Sequence[Source]) -> Settings:
    """Return each setting from the first of `sources` that has it, else its built-in default.

    Raises:
        SpecError: a value is not allowed; the message names the source.
    """
    found: dict[str, Any] = {}
    for setting in SETTINGS.values():
        name, value = setting.name, setting.default
        for source in sources:
            given = source.lookup(setting)
            if given is not None:
                name, value = source.called(setting), given
                break
        try:
            found[setting.name] = setting.parse(value)
        except ValueError as error:
            raise SpecError(f"{name}={value}: {error}") from error
    shape = {each.name: found.pop(each.name) for each in DEFAULTS}
    return Settings(shape=shape, **found)


def environment(environ: Mapping[str, str]) -> Source:
    """Return the source that reads `VIRTAINER_X`; an empty variable counts as not given."""
    return Source(lambda setting: setting.variable, lambda setting: environ.get(setting.variable) or None)
