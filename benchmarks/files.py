"""A large file to a VM and back, against OpenSSH's sftp to the same VM, in turn.

    VIRTAINER_ENGINE=docker python -m benchmarks.files [MIB]

Half of the file's blocks are random, half are text that repeats. Target: ratio at least 1.0 in both directions.
"""

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pytest_virtainers.handle.vm import VM
from pytest_virtainers.manager import Manager
from pytest_virtainers.progress import SILENT
from pytest_virtainers.settings import environment, resolve
from pytest_virtainers.spec import merge

_ROUNDS = 3
_BLOCK = 1024 * 1024


def sftp(vm: VM, command: str) -> None:
    """Run one command of OpenSSH's sftp."""
    words = shlex.split(vm.ssh_command)
    words = ["sftp", *words[1:-1], "-b", "-", words[-1]]
    subprocess.run(words, input=command.encode(), check=True, stdout=subprocess.DEVNULL)


def seconds(action: Callable[[], object]) -> float:
    """Measure one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    """Measure in turn and print medians and their ratios."""
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    settings = resolve([environment(os.environ)])
    with Manager(settings, SILENT) as manager, tempfile.TemporaryDirectory() as folder:
        source, back = Path(folder, "source"), Path(folder, "back")
        with source.open("wb") as file:
            for number in range(mib):
                line = f"{number} a line of text that a log might hold\n".encode()
                file.write(os.urandom(_BLOCK) if number % 2 else (line * (_BLOCK // len(line) + 1))[:_BLOCK])
        vm = manager.launch(merge(settings.shape))
        vm.run("sync")
        taken: dict[str, list[float]] = {"put": [], "sftp put": [], "get": [], "sftp get": []}
        for _ in range(_ROUNDS):
            taken["sftp put"].append(seconds(lambda: sftp(vm, f"put {source} /var/tmp/by-sftp")))
            taken["put"].append(seconds(lambda: vm.put(source, "/var/tmp/by-us")))
            taken["sftp get"].append(seconds(lambda: sftp(vm, f"get /var/tmp/by-sftp {back}")))
            taken["get"].append(seconds(lambda: vm.get("/var/tmp/by-us", back)))
            assert back.read_bytes() == source.read_bytes()
        print(f"{mib} MiB, {vm.spec.image}, {vm.spec.cpus} CPU on {manager.engine}")
        for way in ("put", "get"):
            ours, theirs = statistics.median(taken[way]), statistics.median(taken[f"sftp {way}"])
            rates = f"{mib / ours:.1f} MiB/s, sftp {mib / theirs:.1f} MiB/s"
            print(f"{way}: {ours:.1f} s, sftp {theirs:.1f} s ({rates}); ratio of speeds {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
