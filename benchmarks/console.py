"""A command on a VM with much console output, against the same command before that."""

import os
import statistics
import time

from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm.vm import VM

ROUNDS, MIB = 20, 16  # three times what is kept; the emulated serial port takes a minute for ten


def command(vm: VM) -> float:
    """Run a command; return the seconds."""
    began = time.perf_counter()
    vm.run("true")
    return time.perf_counter() - began


def measure() -> list[Row]:
    """Measure before and after."""
    with build_launcher(resolve([environment(os.environ)]), SILENT) as launcher:
        vm = launcher.launch(merge(resolve([]).shape, {"template": True}))
        statistics.median(command(vm) for _ in range(ROUNDS))  # costs of the first ones only
        before = [command(vm) for _ in range(ROUNDS)]
        flood = f"yes 'a line that a console might show' | head -c {MIB}M >/dev/console"
        vm.run(["sh", "-c", flood], sudo=True, timeout=3600)
        after = [command(vm) for _ in range(ROUNDS)]
    return [Row(f"a command after {MIB} MiB on the console", tuple(after), "s", "before", tuple(before), 1.2)]
