"""Tables of docs/reference.md, made from the declaration of arguments and settings.

`python docs/tables.py` writes them into the page. A unit test compares the page with them.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from pytest_virtainers.config.arguments import ARGUMENTS, DEFAULTS, SETTINGS, Argument

PAGE = Path(__file__).parent / "reference.md"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def arguments() -> str:
    """Return the table of the marker's arguments."""
    return _table("argument", ARGUMENTS.values())


def settings() -> str:
    """Return the names of settings that are arguments, too, and the table of all others."""
    names = ", ".join(f"`{each.name}`" for each in DEFAULTS)
    own = [each for each in SETTINGS.values() if each not in DEFAULTS]
    return f"Defaults of arguments with the same name: {names}.\n\n{_table('setting', own)}"


def written(page: str) -> str:
    """Return a page with its tables as they should be."""
    made = {"arguments": arguments, "settings": settings}
    return _TABLE.sub(lambda found: f"{found[1]}\n{made[found[2]]()}\n", page)


def _table(heading: str, declared: Iterable[Argument]) -> str:
    lines = [f"| {heading} | values, default | meaning |", "| --- | --- | --- |"]
    for each in declared:
        name = f"`{each.name}`" + (f" (`{each.command_option}`)" if each.each else "")
        default = f"; `{each.default}`" if each.default else ""
        lines.append(f"| {name} | {each.kind.what}{default} | {each.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
