"""docs/runtime-image.md lists all commands and variables of the runtime image."""

import re
from pathlib import Path
from typing import Any

from virtainer.protocol import Variable
from virtainer.settings import Settings

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "images/runtime"


def listed(heading: str) -> set[str]:
    """Return the first word of each code span in the first column of the table under a heading."""
    text = (ROOT / "docs/runtime-image.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name.split()[0] for row in rows for name in re.findall(r"`([^`]+)`", row)} - {"docker"}


def test_each_command_is_listed() -> None:
    commands = {each.name for each in (RUNTIME / "bin").iterdir()} - {"virtainer"}  # the entry point
    assert commands <= listed("Commands")


def test_each_variable_is_declared_and_listed() -> None:
    asked: set[str] = set()

    class Environment(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            asked.add(name)
            return default

    Settings.from_env(Environment())
    assert asked == listed("Variables") == {each for each in vars(Variable) if each.isupper()}
