"""The documentation agrees with the code: tables are made from declarations, and the tests that it names exist."""

import re
import runpy
from pathlib import Path

from pytest_virtainers.config.arguments import ARGUMENTS, SETTINGS

ROOT = Path(__file__).parents[2]
_TABLES = runpy.run_path(str(ROOT / "docs/tables.py"))
_MODULE = re.compile(r"`((?:\w+/)+(?!test_)\w+\.py)")
_RUNTIME_MODULE = re.compile(r"`virtainer\.(\w+)")
_NAMED = re.compile(r"`(?:tests/)?(…|(?:[\w/]+/)?test_\w+\.py)(?:::(\w+))?")


def test_each_test_named_on_a_page_exists() -> None:
    """A name after `…` is in the file that was named before; here it may be in any."""
    sources = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = [(page, *each) for page in (ROOT / "docs").glob("*.md") for each in _NAMED.findall(page.read_text())]
    assert len(named) > 60, "otherwise this test reads nothing"
    for page, path, function in named:
        found = [text for file, text in sources.items() if path == "…" or file.as_posix().endswith(f"/{path}")]
        assert found, f"{page.name} names {path}"
        assert any(f"def {function}" in text for text in found), f"{page.name} names {path}::{function}"


def test_each_module_that_a_page_names_exists() -> None:
    pages = {page: page.read_text() for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]}
    named = [(page, path) for page, text in pages.items() for path in _MODULE.findall(text)]
    named += [
        (page, f"virtainer/{name}.py") for page, text in pages.items() for name in _RUNTIME_MODULE.findall(text)
    ]
    assert len(named) > 60, "else this reads nothing"
    for page, path in named:
        folders = (ROOT, ROOT / "pytest_virtainers", ROOT / "tests", ROOT / "images/runtime")
        assert any((folder / path).is_file() for folder in folders), f"{page.name} names {path}"


def test_the_tables_of_the_reference_are_made_from_the_declaration() -> None:
    page = _TABLES["PAGE"].read_text()
    assert _TABLES["written"](page) == page, "python docs/tables.py writes them"
    assert all(f"| `{name}`" in page for name in ARGUMENTS)
    assert all(f"`{name}`" in _TABLES["settings"]() for name in SETTINGS)


def test_an_old_table_is_replaced() -> None:
    page = "<!-- table: arguments -->\nwhat was here\n<!-- end -->\nkept\n<!-- table: settings -->\n<!-- end -->\n"
    new = _TABLES["written"](page)
    assert _TABLES["written"](new) == new
    assert new.count("| --- | --- | --- |") == 2
    assert "what was here" not in new
    assert "<!-- end -->\nkept\n" in new


def test_the_reference_names_what_shapes_a_template() -> None:
    text = (ROOT / "docs/reference.md").read_text().partition("A shape is\n")[2].partition(":")[0]
    names = {each.name for each in ARGUMENTS.values() if each.shapes_template}
    assert {*re.findall(r"`(\w+)`", text)} == names - {"image"}
    assert "the guest image" in text


def test_the_readme_shows_all_arguments_of_the_marker() -> None:
    shown = re.search(r"`@pytest\.mark\.virtainer\(name, (.*?)\)`", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown
    assert re.findall(r"(\w+)=", shown[1]) == [*ARGUMENTS][1:]


def test_the_page_on_commands_shows_each_option_for_one_item() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    assert all(f"| `{each.command_option} " in page for each in ARGUMENTS.values() if each.each)
