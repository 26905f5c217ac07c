"""Names and words of a guest, as a terminal may show them."""

from __future__ import annotations

from pytest_virtainers.terminal import one_line

_LONGEST = 200  # characters


def shown(name: bytes, longest: int = _LONGEST) -> str:
    """Return a name as it may be shown on a terminal: escaped, and at most so many characters."""
    text = one_line(name[: 4 * longest + 4].decode("utf-8", "backslashreplace"))
    return text if len(text) <= longest else f"{text[:longest]}…"
