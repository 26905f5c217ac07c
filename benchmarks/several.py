"""Three clones started together against one, in turn.

    VIRTAINER_ENGINE=docker python -m benchmarks.several [ROUNDS]

Target, where the cores allow it: three take at most 1.6 times as long as one.
"""

import os
import statistics
import sys
import time
from dataclasses import replace

from pytest_virtainers.manager import Manager
from pytest_virtainers.progress import SILENT
from pytest_virtainers.settings import environment, resolve
from pytest_virtainers.spec import Spec, merge


def launch(manager: Manager, specs: list[Spec]) -> float:
    """Launch them together; give the seconds until all are ready."""
    began = time.perf_counter()
    vms = manager.launch_all(specs)
    taken = time.perf_counter() - began
    for vm in vms:
        manager.discard(vm)
    return taken


def main() -> None:
    """Measure in turn and print medians and their ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with Manager(resolve([environment(os.environ)]), SILENT) as manager:
        shape = resolve([]).shape
        three = [replace(merge(shape, {"template": True}), name=name) for name in ("one", "two", "three")]
        launch(manager, three)  # what only the first ones pay
        alone, together = [], []
        for _ in range(rounds):
            alone.append(launch(manager, three[:1]))
            together.append(launch(manager, three))
        print(f"{three[0].image} on {manager.engine}, {os.cpu_count()} cores")
    one, all_three = statistics.median(alone), statistics.median(together)
    print(f"one {one:.2f} s, three {all_three:.2f} s: ratio {all_three / one:.2f} (medians of {rounds})")


if __name__ == "__main__":
    main()
