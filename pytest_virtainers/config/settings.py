"""Settings of a run: what they are called, and which source wins.

Every setting is `--virtainer-X`, `VIRTAINER_X` in the environment and `virtainer_X` in the ini file; the first
of these that speaks wins, then the built-in default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config import parsing, reach
from pytest_virtainers.config.arguments import OPTIONS, SHAPE, Option
from pytest_virtainers.config.spec import PARSERS
from pytest_virtainers.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


SHAPE_NAMES = tuple(each.name for each in SHAPE)
_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    **{name: PARSERS[name] for name in SHAPE_NAMES},
    "engine": parsing.text,
    "store": parsing.text,
    "store_limit": parsing.size_mib(least=0),
    "prefetch": parsing.switch,
    "max_ram": parsing.size_or_share,
    "reach": reach.networks,
    "keep": parsing.choice("never", "failed", "always"),
    "artifacts": parsing.text,
    "keep_memory": parsing.switch,
    "capture": parsing.choice("never", "failed", "always"),
    "retention": parsing.count_or_all,
    "hold": parsing.switch,
    "echo": parsing.switch,
    "durations": parsing.switch,
    "missing": parsing.choice("error", "skip"),
}


@dataclass(frozen=True)
class Settings:
    """The settings of this run; `shape` has the defaults of a `Spec`, in its units; `store_limit` is in MiB.

    `max_ram` gives the memory for all VMs, from that of the engine's host, both in MiB.
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
    """A place where settings are written: how one is called there, and its value (None: not given)."""

    called: Callable[[Option], str]
    lookup: Callable[[Option], str | None]


def resolve(sources: Sequence[Source]) -> Settings:
    """Take each setting from the first of `sources` that gives it, else from the built-in defaults.

    Raises:
        SpecError: a value is not allowed; the message names the source.
    """
    found: dict[str, Any] = {}
    for setting in OPTIONS:
        name, value = setting.name, setting.default
        for source in sources:
            given = source.lookup(setting)
            if given is not None:
                name, value = source.called(setting), given
                break
        try:
            found[setting.name] = _PARSERS[setting.name](value)
        except ValueError as error:
            raise SpecError(f"{name}={value}: {error}") from error
    shape = {name: found.pop(name) for name in SHAPE_NAMES}
    return Settings(shape=shape, **found)


def environment(environ: Mapping[str, str]) -> Source:
    """Make the source that reads `VIRTAINER_X`; an empty variable gives nothing."""
    return Source(lambda setting: setting.variable, lambda setting: environ.get(setting.variable) or None)
