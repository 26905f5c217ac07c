"""What a container is counted with, by what its engine says of it. With real ones: `tests/vm/test_budget.py`."""

import pytest

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.engine import detect
from pytest_virtainers.errors import BudgetError
from pytest_virtainers.launching import memory_budget
from pytest_virtainers.support.progress import SILENT
from tests.unit.fake_engine import serving

MIB = 1024 * 1024
SPEC = merge(resolve([]).shape, {"ram": 512})
CLONE = {
    "Id": "1",
    "State": "running",
    "Created": 1700000000,
    "Labels": {memory_budget.MEMORY: "256", memory_budget.LIMIT: "1152"},
}


@pytest.mark.parametrize(
    ("used", "counted"),
    [(100, 256), (700, 700), (10_000, 1152)],
    ids=["at least what a new one is", "what it takes", "at most what it can take"],
)
def test_a_clone_is_counted_with_the_memory_that_it_uses(used: int, counted: int) -> None:
    answers = {
        "GET /containers/json": (200, [CLONE]),
        "GET /containers/1/stats": (200, {"memory_stats": {"usage": used * MIB}}),
    }
    with serving(answers) as server:
        engine = detect.find(server.url)
        engine._facts = {"MemTotal": 64 * 1024**3}
        for limit, fits in ((counted + 400, True), (counted + 399, False)):
            memory = memory_budget.Budget(engine, lambda _host, limit=limit: limit, "run", SILENT)  # type: ignore[misc]
            try:
                with memory.room(SPEC, 400, give_back=lambda: False, patience=0):
                    assert fits
            except BudgetError:
                assert not fits
        engine.close()
