"""What changes the digest of a `prepare` function, and so its template."""

import functools
import importlib
import linecache
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_virtainers.config.prepare_digest import digest


def load(source: str, **variables: Any) -> Callable[..., Any]:
    """Execute a source as a separate module and return its function `prepare`."""
    module = types.ModuleType("conftest_of_the_test")
    module.__dict__.update(variables)
    name = f"<source {abs(hash((source, len(linecache.cache))))}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102
    function: Callable[..., Any] = module.prepare
    return function


PLAIN = "def prepare(vm):\n    vm.run('a')\n"


def test_equal_sources_have_equal_digests() -> None:
    assert digest(load(PLAIN)) == digest(load(PLAIN))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PLAIN, PLAIN.replace("'a'", "'b'")),
        ("def prepare(vm, x=1): vm.run(x)\n", "def prepare(vm, x=2): vm.run(x)\n"),
        ("N = 1\ndef prepare(vm): vm.run(N)\n", "N = 2\ndef prepare(vm): vm.run(N)\n"),
        (
            "def help(vm): vm.run('a')\ndef prepare(vm): help(vm)\n",
            "def help(vm): vm.run('b')\ndef prepare(vm): help(vm)\n",
        ),
        (
            "def make(n):\n    def prepare(vm): vm.run(n)\n    return prepare\nprepare = make('a')\n",
            "def make(n):\n    def prepare(vm): vm.run(n)\n    return prepare\nprepare = make('b')\n",
        ),
        *(
            (f"N = 1\ndef help(): return N\n{source}", f"N = 2\ndef help(): return N\n{source}")
            for source in (
                "import functools\n@functools.cache\ndef go(): return help()\ndef prepare(vm): vm.run(go())\n",
            )
        ),
        *(
            (f"N = 1\ndef help(): return N\n{source}", f"N = 2\ndef help(): return N\n{source}")
            for source in (
                "def prepare(vm):\n    def one():\n        def two(): vm.run(help())\n        two()\n    one()\n",
                "def prepare(vm): vm.retry(lambda: help())\n",
                "def prepare(vm): vm.run([help() for _ in 'ab'])\n",
                "def prepare(vm):\n    class Inner:\n        command = help()\n    vm.run(Inner.command)\n",
            )
        ),
    ],
    ids=[
        *("body", "default", "global value", "helper's body", "closure", "wrapped"),
        *("nested function", "lambda", "comprehension", "nested class"),
    ],
)
def test_code_and_values_that_a_function_uses_change_its_digest(one: str, other: str) -> None:
    assert digest(load(one)) != digest(load(other))


@pytest.mark.parametrize(
    "source",
    ["import helpers\ndef prepare(vm): helpers.go(vm)\n", "from helpers import go\ndef prepare(vm): go(vm)\n"],
)
@pytest.mark.parametrize("place", ["tests", "site-packages"])
def test_another_module_counts_unless_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, place: str
) -> None:
    (tmp_path / place).mkdir()
    helpers = tmp_path / place / "helpers.py"
    helpers.write_text("def go(vm): vm.run(_command())\ndef _command(): return 'a'\n")
    monkeypatch.syspath_prepend(tmp_path / place)
    monkeypatch.delitem(sys.modules, "helpers", raising=False)
    before = digest(load(source))
    assert digest(load(source)) == before
    helpers.write_text(helpers.read_text().replace("'a'", "'bb'"))
    assert (digest(load(source)) != before) == (place == "tests")


@pytest.mark.parametrize(
    "source",
    [
        "def prepare(vm): Setup().go(vm)\n",
        "setup = Setup()\ndef prepare(vm): setup.go(vm)\n",
        "setups = [Setup()]\ndef prepare(vm): setups[0].go(vm)\n",
        "def prepare(vm): Package('x'); Row(1)\n",
        "package, row = Package('x'), Row(1)\ndef prepare(vm): vm.run(package.name)\n",
    ],
    ids=["class", "object", "in a list", "dataclass", "objects of dataclasses"],
)
def test_a_class_counts_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    file = tmp_path / "of_the_project.py"
    kinds = (
        "import dataclasses, threading, typing\n"
        "class Setup:\n    lock = threading.Lock()\n    def __repr__(self): return 'it'\n"
        "    def go(self, vm): vm.run(N)\n"
        "@dataclasses.dataclass\nclass Package:\n    name: str\n"
        "class Row(typing.NamedTuple):\n    x: int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text(f"N = 1\n{kinds}{source}")
    monkeypatch.delitem(sys.modules, "of_the_project", raising=False)
    prepare = importlib.import_module("of_the_project").prepare
    before = digest(prepare)
    assert digest(prepare) == before
    file.write_text(f"N = 22\n{kinds}{source}")
    assert digest(prepare) != before


@pytest.mark.parametrize(
    "value", ["re.compile('a').match", "'{}'.format", "bytes.fromhex", "datetime.datetime.now", "random.random"]
)
def test_values_of_the_standard_library_are_accepted(value: str) -> None:
    assert digest(load(f"import re, datetime, random\nuse = {value}\ndef prepare(vm): use\n"))


def test_functions_that_name_each_other_are_read_once() -> None:
    names = [f"f{number}" for number in range(30)]
    all_of_them = "".join(f"def {name}(): {', '.join(names)}\n" for name in names)
    began = time.monotonic()
    digest(load(f"{all_of_them}def prepare(vm): f0()\n"))
    assert time.monotonic() - began < 30


def test_other_code_of_the_module_does_not_change_the_digest() -> None:
    assert digest(load(PLAIN)) == digest(load(PLAIN + "def test_other(): pass\n"))


def test_functions_that_call_each_other_end() -> None:
    assert digest(load("def help(vm): prepare(vm)\ndef prepare(vm): help(vm)\n"))


def test_files_count_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("one")
    function = functools.partial(load("def prepare(vm, source): vm.put(source, '/srv')\n"), source=tmp_path / "tree")
    before = digest(function)
    assert digest(function) == before
    (tmp_path / "tree" / "file").write_text("another")
    assert digest(function) != before


def test_a_file_that_looks_the_same_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("one")
    function = functools.partial(load(PLAIN), tmp_path)
    before = digest(function)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", None)
        assert digest(function) == before


@pytest.mark.parametrize("differs", ["size", "time", "inode"])
def test_a_file_that_looks_different_is_read_again(tmp_path: Path, differs: str) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    os.utime(file, ns=(10**18, 10**18))
    function = functools.partial(load(PLAIN), file)
    before = digest(function)
    if differs == "inode":
        file.rename(tmp_path / "kept")
    file.write_text("three" if differs == "size" else "two")
    time = 10**18 + (differs == "time")
    os.utime(file, ns=(time, time))
    assert digest(function) != before


def test_a_value_without_a_lasting_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"THING is <object object at 0x.*>, which looks different in each process"):
        digest(load("THING = object()\ndef prepare(vm): vm.run(THING)\n"))


def test_a_function_without_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the source of <function <lambda>.*> cannot be read: write it in"):
        digest(eval("lambda vm: None"))  # noqa: S307
