"""The parts in which `./dev thorough N/M` runs what CI leaves out."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.vm.parts import part_of

ITEMS = cast("list[pytest.Item]", [SimpleNamespace(path=Path(f"test_{number % 5}.py")) for number in range(17)])


@pytest.mark.parametrize("parts", [1, 3, 5, 7])
def test_each_item_is_in_one_part_with_those_of_its_file(parts: int) -> None:
    found = [part_of(ITEMS, f"{number}/{parts}") for number in range(1, parts + 1)]
    assert sum(map(len, found)) == len(ITEMS)
    files = [{item.path for item in part} for part in found]
    assert sum(map(len, files)) == len(set().union(*files)) == 5


@pytest.mark.parametrize("part", ["0/7", "8/7", "7", "a/b"])
def test_an_invalid_part_is_refused(part: str) -> None:
    with pytest.raises(pytest.UsageError, match=rf"--part={part}: N/M is needed, with N from 1 to M"):
        part_of(ITEMS, part)
