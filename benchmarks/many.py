"""Clones that are up at once, each answering a command, and the memory that they take.

    VIRTAINER_ENGINE=docker python -m benchmarks.many [CLONES]

Targets: 50 on a host of 24 GiB, all of which have answered after 90 s; an idle clone of 1 GiB takes at most 150 MB (PSS
of all processes of its container; read by root, on the engine's host). While it is alone, that includes all pages of
files which clones share: the template's RAM, of which the kernel maps sixteen around each that the guest reads, QEMU,
Python.
"""

import os
import statistics
import sys
import time
from pathlib import Path

from pytest_virtainers.handle.vm import VM
from pytest_virtainers.manager import Manager
from pytest_virtainers.progress import SILENT
from pytest_virtainers.settings import environment, resolve
from pytest_virtainers.spec import merge


def memory_mb(manager: Manager, vm: VM, kind: str = "Pss") -> float:
    """Sum the memory of a container's processes: proportional, or what is `Anonymous`, so nobody else's."""
    first = manager.engine.api.inspect_container(vm._container.id)["State"]["Pid"]
    ours = _namespace(Path(f"/proc/{first}"))
    pids = [each.name for each in Path("/proc").glob("[0-9]*") if _namespace(each) == ours]
    rows = [line.split() for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(row[1]) * 1024 for row in rows if row[0] == f"{kind}:") / 1e6


def _namespace(process: Path) -> Path | None:
    try:
        return (process / "ns/pid").readlink()
    except OSError:  # it has ended, or is not ours to look at
        return None


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    spec = merge(resolve([]).shape, {"template": True})
    with Manager(resolve([environment(os.environ)]), SILENT) as manager:
        print(f"{spec.image}, {spec.ram} MiB, {spec.cpus} CPU on {manager.engine}")
        manager.discard(manager.launch(spec))
        vms = [manager.launch(spec)]
        vms[0].run("true")
        time.sleep(10)
        alone = memory_mb(manager, vms[0])
        own = memory_mb(manager, vms[0], "Anonymous")
        vms.append(manager.launch(spec))
        vms[1].run("true")
        time.sleep(10)
        of_two = memory_mb(manager, vms[0])
        for vm in vms:
            manager.discard(vm)
        began = time.monotonic()
        vms = [manager.launch(spec) for _ in range(count)]
        answers = {vm.run("cat /proc/sys/kernel/random/uuid").stdout for vm in vms}
        taken = time.monotonic() - began
        together = [memory_mb(manager, vm) for vm in vms]
    print(f"{len(answers)} of {count} clones up at once have answered, after {taken:.0f} s")
    print(
        f"an idle clone takes {alone:.0f} MB alone ({own:.0f} MB its own, the rest pages of files), "
        f"{of_two:.0f} MB beside one more, {statistics.median(together):.0f} MB among {count} (median); "
        f"all {sum(together):.0f} MB; ratio to their nominal RAM {sum(together) / (count * spec.ram * 1.048576):.2f}"
    )


if __name__ == "__main__":
    main()
