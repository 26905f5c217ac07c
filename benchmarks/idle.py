"""CPU time of a clone that does nothing, as a share of a core, against a process that only wakes up.

Counted are all processes of the clone's container, a minute after its start: what starts with a guest has ended then.
The peer is a container of the same image with a program that wakes up a hundred times a second and does nothing.
"""

import os
import time

from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.engine.base import Container
from pytest_virtainers.engine.plan import Plan
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.support.progress import SILENT

_TICKS = ["python3", "-S", "-c", "import time\nwhile True: time.sleep(0.01)"]
_SETTLE_SECONDS, SECONDS, ROUNDS, LIMIT = 60.0, 20.0, 3, 0.6


def cpu_seconds(container: Container) -> float:
    """Return the CPU time that the processes of a container have used; those of this look are left out."""
    code, said = container.run(["sh", "-c", "getconf CLK_TCK; cat /proc/[0-9]*/stat 2>/dev/null"])
    assert code in {0, 1}, said  # 1: a process has just ended
    ticks, *processes = said.decode(errors="replace").splitlines()
    # After the name, which may have spaces in it: state, parent, … utime (14th) and stime, in ticks (proc(5)).
    rows = [each.rpartition(")")[2].split() for each in processes if "(sh)" not in each and "(cat)" not in each]
    return sum(int(row[11]) + int(row[12]) for row in rows) / int(ticks)


def share(container: Container, seconds: float) -> float:
    """Watch a container for some seconds and return the share of a core that its processes have used."""
    before, began = cpu_seconds(container), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(container) - before) / (time.monotonic() - began)


def measure() -> list[Row]:
    """Measure both in turn."""
    spec = merge(resolve([]).shape, {"template": True})
    ours, peers = [], []
    with build_launcher(resolve([environment(os.environ)]), SILENT) as launcher:
        vm = launcher.launch(spec)
        vm.run("true")
        plan = Plan(
            name="virtainers-benchmark-idle",
            kind="helper",
            image=launcher.runtime_image.reference(),
            entrypoint=tuple(_TICKS),
            offline=True,
        )
        peer = launcher.engine.create(plan, "benchmark")
        try:
            peer.start()
            time.sleep(_SETTLE_SECONDS)
            for _ in range(ROUNDS):
                ours.append(100 * share(vm.machine.container, SECONDS))
                peers.append(100 * share(peer, SECONDS))
        finally:
            peer.close()
    what, unit = "CPU of an idle clone", "% of a core"
    return [
        Row(what, tuple(ours), unit, f"{LIMIT} %", (LIMIT,), 1.0),
        Row(what, tuple(ours), unit, "a process that wakes up a hundred times a second", tuple(peers)),
    ]
