"""The tests that the documentation names as proof exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NAMED = re.compile(r"`(?:tests/)?(…|(?:[\w/]+/)?test_\w+\.py)(?:::(\w+))?")


def test_each_test_that_a_page_names_exists() -> None:
    """A name after `…` is looked for in all files: it is in the one that was named before."""
    sources = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = [(page, *each) for page in (ROOT / "docs").glob("*.md") for each in _NAMED.findall(page.read_text())]
    assert len(named) > 60, "else this reads nothing"
    for page, path, function in named:
        found = [text for file, text in sources.items() if path == "…" or file.as_posix().endswith(f"/{path}")]
        assert found, f"{page.name} names {path}"
        assert any(f"def {function}" in text for text in found), f"{page.name} names {path}::{function}"
