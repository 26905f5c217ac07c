"""Places in the store, `guests/KEY` and `templates/KEY`, and their paths in containers."""

from __future__ import annotations

import re

from pytest_virtainers.errors import StoreError

MOUNT = "/store"
"""Where containers have the store."""
_KEY = "[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_PLACE = re.compile(f"(guests|templates)/{_KEY}")


def key(value: object) -> str:
    """Parse the name of a guest image or template in the store."""
    if not isinstance(value, str) or not re.fullmatch(_KEY, value):
        raise ValueError("a name of letters, digits, ., _ and - is expected, starting with a letter or digit")
    return value


def is_place(value: object) -> bool:
    """Return whether this is a place in the store."""
    return isinstance(value, str) and _PLACE.fullmatch(value) is not None


def path(place: str) -> str:
    """Return the path of a place in a container that mounts it; raise `StoreError` if it is no place."""
    if not is_place(place):
        raise StoreError(f"{place!r} is not a place in the store: places are guests/KEY and templates/KEY")
    return f"{MOUNT}/{place}"
