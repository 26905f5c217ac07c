"""The options and ini keys of pytest are those of the declaration."""

import pytest

from pytest_virtainers.config.arguments import SETTINGS, Argument
from pytest_virtainers.plugin import options

VALUES = {each.name: "on" if each.flag else each.default for each in SETTINGS.values()}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in SETTINGS.values():
        monkeypatch.delenv(each.variable, raising=False)


def test_each_setting_is_an_option(pytester: pytest.Pytester) -> None:
    assert not options.are_given(pytester.parseconfig())
    words = [each.option if each.flag else f"{each.option}={each.default}" for each in SETTINGS.values()]
    config = pytester.parseconfig(*words)
    assert options.are_given(config)
    source = options.sources(config)[0]
    assert {each.name: source.lookup(each) for each in SETTINGS.values()} == VALUES


def test_each_setting_is_an_ini_key(pytester: pytest.Pytester) -> None:
    pytester.makeini("\n".join(["[pytest]", *(f"{each.ini} = {VALUES[each.name]}" for each in SETTINGS.values())]))
    config = pytester.parseconfig()
    assert options.are_given(config)
    source = options.sources(config)[-1]
    assert {each.name: source.lookup(each) for each in SETTINGS.values()} == VALUES


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda each: each.name)
def test_each_setting_is_a_variable(request: pytest.FixtureRequest, setting: Argument) -> None:
    sources = options.sources(request.config)
    assert sources[1].lookup(setting) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(setting.variable, VALUES[setting.name])
        assert options.are_given(request.config)
        assert sources[1].lookup(setting) == VALUES[setting.name]


def test_help_has_the_values_and_the_default_of_each_setting(pytester: pytest.Pytester) -> None:
    text = " ".join(pytester.runpytest("--help").stdout.str().split())
    for each in SETTINGS.values():
        assert each.option in text
        assert f"{each.help} ({each.kind.what}; default: {each.default})" in text, each.name
