"""The options and ini keys of pytest, one for each setting, and the values that a run has for them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_virtainers.config.arguments import SETTINGS, Argument

if TYPE_CHECKING:
    import pytest

    from pytest_virtainers.config.settings import Source


def add(parser: pytest.Parser) -> None:
    """Add `--virtainer-X` and the ini key `virtainer_X` for each setting, and `--virtainer-warm`."""
    group = parser.getgroup("virtainers", "disposable virtual machines")
    for setting in SETTINGS.values():
        about = f"{setting.help} ({setting.kind.what}; default: {setting.default})"
        as_format = about.replace("%", "%%")  # argparse formats it
        if setting.flag:
            group.addoption(setting.option, dest=setting.ini, action="store_const", const="on", help=as_format)
        else:
            group.addoption(setting.option, dest=setting.ini, metavar=setting.name.upper(), help=as_format)
        parser.addini(setting.ini, about)
    about = "make the images and templates that the tests need, and run no test"
    group.addoption("--virtainer-warm", dest="virtainer_warm", action="store_true", help=about)


def are_given(config: pytest.Config) -> bool:
    """Return whether any setting is given, on the command line, in the environment or in the ini file."""
    return any(
        _option(config, each) is not None or os.environ.get(each.variable) or _ini(config, each)
        for each in SETTINGS.values()
    )


def sources(config: pytest.Config) -> list[Source]:
    """Return the places where settings may be written, the strongest first."""
    from pytest_virtainers.config.settings import Source, environment

    return [
        Source(lambda setting: setting.option, lambda setting: _option(config, setting)),
        environment(os.environ),
        Source(lambda setting: f"{setting.ini} in the ini file", lambda setting: _ini(config, setting)),
    ]


def _option(config: pytest.Config, setting: Argument) -> str | None:
    value: str | None = config.getoption(setting.ini)
    return value


def _ini(config: pytest.Config, setting: Argument) -> str | None:
    return config.getini(setting.ini) or None
