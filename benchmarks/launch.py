"""`launch()` in a loop, against the `vm` fixture, in turn: each time a fresh VM and one command."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import suite
from benchmarks.rows import Row

ROUNDS, VMS = 3, 6

_LOOP = """
import time
from pathlib import Path
from pytest_virtainers import launch

for _ in range({vms}):
    with launch() as vm:
        vm.run("true")
        with Path("times").open("a") as file:
            print(time.time(), file=file)
"""


def loop(folder: str) -> list[float]:
    """Run the loop in a separate process; return the seconds from one command to the next one."""
    times = Path(folder, "times")
    times.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-c", _LOOP.format(vms=VMS)], cwd=folder, check=True, env=os.environ)
    return suite.differences(times)


def measure() -> list[Row]:
    """Measure in turn."""
    looped: list[float] = []
    fixtures: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            looped.append(statistics.median(loop(folder)))
            fixtures.append(statistics.median(suite.run(folder, "off", VMS)[1:]))
    return [Row("`launch()` in a loop, each VM", tuple(looped), "s", "the `vm` fixture", tuple(fixtures), 1.2)]
