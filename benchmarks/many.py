"""Clones that are up at once, each answering a command, and the memory that they take.

Memory is that of all processes of a clone's container, proportional (PSS); read by root, on the engine's host. While
it is alone, that includes all pages of files which clones share: the template's RAM, of which the kernel maps sixteen
around each that the guest reads, QEMU, Python.
"""

import os
import time
from pathlib import Path

from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm.vm import VM

ROUNDS, CLONES = 5, 50


def memory_mb(launcher: Launcher, vm: VM, kind: str = "Pss") -> float:
    """Sum the memory of a container's processes: proportional, or what is `Anonymous`, so its own."""
    assert isinstance(launcher.engine, DockerEngine)
    first = launcher.engine.api.inspect_container(vm.machine.container.id)["State"]["Pid"]
    ours = _namespace(Path(f"/proc/{first}"))
    pids = [each.name for each in Path("/proc").glob("[0-9]*") if _namespace(each) == ours]
    rows = [line.split() for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(row[1]) * 1024 for row in rows if row[0] == f"{kind}:") / 1e6


def _namespace(process: Path) -> Path | None:
    try:
        return (process / "ns/pid").readlink()
    except OSError:  # it has ended, or this user may not read it
        return None


def measure() -> list[Row]:
    """Start them one after another; all stay up."""
    spec = merge(resolve([]).shape, {"template": True})
    with build_launcher(resolve([environment(os.environ)]), SILENT) as launcher:
        launcher.discard(launcher.launch(spec))
        one: list[float] = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            vm = launcher.launch(spec)
            vm.run("true")
            one.append(CLONES * (time.perf_counter() - began))
            launcher.discard(vm)
        vm = launcher.launch(spec)
        vm.run("true")
        time.sleep(10)
        alone = memory_mb(launcher, vm)
        launcher.discard(vm)
        began = time.perf_counter()
        vms = [launcher.launch(spec) for _ in range(CLONES)]
        assert len({vm.run("cat /proc/sys/kernel/random/uuid").stdout for vm in vms}) == CLONES
        taken = time.perf_counter() - began
        together = [memory_mb(launcher, vm) for vm in vms]
    nominal = spec.ram * 1.048576
    return [
        Row(f"{CLONES} clones up, each has answered", (taken,), "s", f"{CLONES} times a clone alone", tuple(one)),
        Row("memory of an idle clone alone (PSS)", (alone,), "MB", "150 MB", (150.0,), 1.0),
        Row(f"memory of a clone among {CLONES} (PSS)", tuple(together), "MB", "its nominal RAM", (nominal,)),
    ]
