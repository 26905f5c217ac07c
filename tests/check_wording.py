"""Report words that this project does not use, with the words to use instead (CONTRIBUTING.md, "Language").

Without arguments, check the lines that the next commit adds; with files, check these files. Text in backticks is not
checked: `nobody` is a user there.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

WORDS = {
    "told": "say what happens: reported, shown, raised",
    "tell of": "report, show",
    "anew": "again",
    "somebody": "someone; better, name them: a user, a process",
    "nobody": "no one; better, name them: no other user, no process",
    "whoever": "name them: a user, a process",
    "is had": "rewrite",
    "goes on with": "continues, resumes",
    "gone on in": "continued, resumed",
    "is gone": "has ended, was removed, does not exist",
    "as ever": "as usual",
    "of one's own": "its own, separate",
    "wants": "requires, asks for",
    "beside": "in addition to, next to",
    "but for": "except",
    "meanwhile": "in the meantime; better, say during what",
}
_BAD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
_TEXT = (".md", ".py", ".toml", ".yml", ".ini", "dev", "Dockerfile")
_SELF = Path(__file__).name

Line = tuple[str, int, str]


def lines_of(paths: Iterable[str]) -> Iterator[Line]:
    """Return all lines of these files, each with its file and number."""
    for path in paths:
        for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            yield path, number, text


def added_lines(diff: str) -> Iterator[Line]:
    """Return the lines that a diff without context adds, each with its file and number."""
    path, number = "", 0
    for line in diff.splitlines():
        if line.startswith("+++ "):
            path = line.removeprefix("+++ b/")
        elif hunk := re.match(r"@@ .*\+(\d+)", line):
            number = int(hunk[1])
        elif line.startswith("+"):
            yield path, number, line[1:]
            number += 1


def findings(lines: Iterable[Line]) -> Iterator[str]:
    """Return a message for each word that should be replaced."""
    for path, number, text in lines:
        if path.endswith(_TEXT) and not path.endswith(_SELF):
            for found in _BAD.finditer(re.sub(r"`[^`]*`", "``", text)):
                yield f'{path}:{number}: "{found[0]}": {WORDS[found[0].lower()]}'


def _staged() -> str:
    command = ["git", "diff", "--cached", "--unified=0", "--no-color", "--no-ext-diff"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    lines = lines_of(sys.argv[1:]) if sys.argv[1:] else added_lines(_staged())
    sys.exit("\n".join(findings(lines)) or 0)
