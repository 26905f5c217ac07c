"""Three clones started together against one, in turn. Without KVM, two cores are too few for the target."""

import os
import time
from dataclasses import replace

from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.support.progress import SILENT

ROUNDS = 10


def launch(launcher: Launcher, specs: list[Spec]) -> float:
    """Launch them together; return the seconds until all are ready."""
    began = time.perf_counter()
    vms = launcher.launch_all(specs)
    taken = time.perf_counter() - began
    for vm in vms:
        launcher.discard(vm)
    return taken


def measure() -> list[Row]:
    """Measure in turn."""
    with build_launcher(resolve([environment(os.environ)]), SILENT) as launcher:
        shape = resolve([]).shape
        three = [replace(merge(shape, {"template": True}), name=name) for name in ("one", "two", "three")]
        launch(launcher, three)  # what only the first ones pay
        alone, together = [], []
        for _ in range(ROUNDS):
            alone.append(launch(launcher, three[:1]))
            together.append(launch(launcher, three))
    return [Row("three clones started together", tuple(together), "s", "one clone", tuple(alone), 1.6)]
