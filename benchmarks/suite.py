"""Pytest runs in which each test uses a fresh VM for one command, with a template in the store."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row

ROUNDS, TESTS = 3, 8

_SUITE = """
import time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({tests}))
def test_fresh(vm, number):
    vm.run("true")
    with Path("times").open("a") as file:
        print(time.time(), file=file)
"""


def run(folder: str, prefetch: str, tests: int) -> list[float]:
    """Run the suite; return the seconds from one test's command to the next one's, the first from pytest's start."""
    times = Path(folder, "times")
    times.unlink(missing_ok=True)
    Path(folder, "test_suite.py").write_text(_SUITE.format(tests=tests))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--virtainer-prefetch={prefetch}"]
    began = time.time()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return differences(times, began)


def differences(times: Path, *before: float) -> list[float]:
    """Return the seconds from each time to the next one."""
    stamps = [*before, *map(float, times.read_text().split())]
    return [after - before for before, after in itertools.pairwise(stamps)]


def measure() -> list[Row]:
    """Measure in turn."""
    firsts: list[float] = []
    rests: list[float] = []
    ahead: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run(folder, "off", 1)  # makes the template, if there is none
        for _ in range(ROUNDS):
            first, *rest = run(folder, "off", TESTS)
            firsts.append(first)
            rests += rest
            ahead += run(folder, "on", TESTS)[1:]
    first_command = "from the start of pytest to the end of the first command"
    return [
        Row(first_command, tuple(firsts), "s", "a later test", tuple(rests), 1.6),
        Row("a test with a fresh VM, prefetched", tuple(ahead), "s", "not prefetched", tuple(rests), 1.0),
    ]
