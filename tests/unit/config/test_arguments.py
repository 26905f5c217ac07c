"""The declaration of arguments and settings, and the signatures that type checkers need in addition."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from pytest_virtainers import Arguments, launch
from pytest_virtainers.config import architecture, settings
from pytest_virtainers.config.arguments import ARGUMENTS, DEFAULTS, SETTINGS, SIGNATURE, Argument, suggestion
from pytest_virtainers.config.settings import Settings, resolve
from pytest_virtainers.config.spec import Spec, merge

EVERY = (*ARGUMENTS.values(), *(each for each in SETTINGS.values() if each not in DEFAULTS))


@pytest.mark.parametrize("argument", EVERY, ids=lambda each: each.name)
def test_each_argument_can_be_parsed_and_has_a_help_text(argument: Argument) -> None:
    assert callable(argument.parse)
    assert argument.read is None or callable(argument.read)
    if argument.default:
        argument.parse(argument.default)
    assert argument.help
    assert argument.kind.what
    assert not argument.help.endswith(".")
    assert bool(argument.kind.metavar) == argument.command_line


def test_a_spec_has_a_field_for_each_argument_with_the_declared_default() -> None:
    assert {each.name for each in fields(Spec)} == {*ARGUMENTS}
    usual = merge(resolve([]).shape)
    for each in fields(Spec):
        declared = ARGUMENTS[each.name]
        assert (each.default is MISSING and each.default_factory is MISSING) == declared.setting, each.name
        if declared.default:
            assert getattr(usual, each.name) == declared.parse(declared.default), each.name
        else:
            assert not getattr(usual, each.name), each.name


def test_settings_have_a_field_for_each_setting() -> None:
    own = [each.name for each in SETTINGS.values() if each not in DEFAULTS]
    assert [each.name for each in fields(Settings)] == ["shape", *own]
    assert {*resolve([]).shape} == {each.name for each in DEFAULTS}


def test_each_argument_has_a_type() -> None:
    keywords = [each.name for each in ARGUMENTS.values() if each.name != "name" and not each.sharing]
    assert {*Arguments.__annotations__} == {*keywords}
    assert {*Arguments.__required_keys__} == set()


@pytest.mark.parametrize("name", [*Arguments.__annotations__])
def test_types_name_the_words_that_are_allowed(name: str) -> None:
    annotation: Any = Arguments.__annotations__[name]
    literal = re.search(r"Literal\[(.*?)\]", annotation.__forward_arg__)
    words = ARGUMENTS[name].kind.given if ARGUMENTS[name].kind.parser == "parsing.choice" else ()
    assert tuple(re.findall(r"\w+", literal[1]) if literal else ()) == words
    assert annotation.__forward_arg__.endswith("None"), "None counts as not given"


def test_launch_accepts_all_arguments_and_two_by_position() -> None:
    names = launch.__wrapped__.__annotations__  # type: ignore[attr-defined]
    assert [*names] == ["image", "name", "persist", "progress", "arguments", "return"]
    assert names["arguments"] == "Unpack[VMArguments]"


def test_the_marker_shows_all_arguments() -> None:
    assert SIGNATURE.startswith("virtainer(name=None, *, image, ram, cpus, disk, user,")
    assert re.findall(r"\w+", SIGNATURE.partition("*")[2]) == [*ARGUMENTS][1:]


def test_architectures_are_those_that_have_a_firmware() -> None:
    assert {*ARGUMENTS["arch"].kind.given} == {"auto", *architecture.FIRMWARE}
    firmware = {each for all_of_one in architecture.FIRMWARE.values() for each in all_of_one}
    assert {*ARGUMENTS["firmware"].kind.given} == {"auto", *firmware}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("memory", "ram"),
        ("vcpus", "cpus"),
        ("file", "files"),
        ("run_command", "run_commands"),
        ("ssh_keys", "authorized_keys"),
        ("networkk", "network"),
        ("xyzzy", None),
    ],
)
def test_suggestions_prefer_synonyms_to_similar_names(word: str, meant: str | None) -> None:
    assert suggestion(word) == meant


def test_no_synonym_is_ambiguous() -> None:
    words = [word for each in ARGUMENTS.values() for word in (*each.synonyms, each.name)]
    assert sorted(words) == sorted({*words})


def test_this_is_the_only_declaration() -> None:
    """No other module of `config` repeats the name or type of a setting."""
    assert "parsing." not in Path(settings.__file__).read_text()
