"""Names and words of a guest, as a terminal may show them."""

from __future__ import annotations

_LONGEST = 200  # characters


def shown(name: bytes, longest: int = _LONGEST) -> str:
    """Return a name as it may be shown on a terminal: escaped, and at most so many characters."""
    text = name[: 4 * longest + 4].decode("utf-8", "backslashreplace")
    text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return text if len(text) <= longest else f"{text[:longest]}…"
