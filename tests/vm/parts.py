"""Parts of the tests that CI leaves out, to run all of them in rotation."""

from collections.abc import Sequence

import pytest


def part_of(items: Sequence[pytest.Item], part: str) -> list[pytest.Item]:
    """Return the items of the N-th of M parts: items of one file stay together, as they share templates."""
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise pytest.UsageError(f"--part={part}: N/M is needed, with N from 1 to M")
    files = sorted({item.path for item in items})[int(number) - 1 :: int(parts)]
    return [item for item in items if item.path in files]
