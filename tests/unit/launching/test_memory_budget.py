"""The memory that a container counts with, by its engine's report. With real ones: `tests/vm/test_budget.py`."""

import pytest

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.errors import BudgetError
from pytest_virtainers.launching import memory_budget
from pytest_virtainers.support.progress import SILENT
from tests.unit.memory_engine import MemoryEngine, listed

SPEC = merge(resolve([]).shape, {"ram": 512})
CLONE = listed("1", {memory_budget.MEMORY: "256", memory_budget.LIMIT: "1152"}, created=1700000000)


@pytest.mark.parametrize(
    ("used", "counted"),
    [(100, 256), (700, 700), (10_000, 1152)],
    ids=["at least the memory of a new one", "its real use", "at most its maximum"],
)
def test_a_clone_is_counted_with_the_memory_that_it_uses(used: int, counted: int) -> None:
    engine = MemoryEngine(listed=[CLONE], used={"1": used})
    for limit, fits in ((counted + 400, True), (counted + 399, False)):
        memory = memory_budget.Budget(engine, lambda _host, limit=limit: limit, "run", SILENT)  # type: ignore[misc]
        try:
            with memory.room(SPEC, 400, give_back=lambda: False, patience=0):
                assert fits
        except BudgetError:
            assert not fits
