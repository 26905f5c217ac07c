"""A large file to a VM and back, against OpenSSH's sftp to the same VM, in turn.

Half of the file's blocks are random, half are text that repeats.
"""

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm.vm import VM

ROUNDS, MIB = 3, 256
_BLOCK = 1024 * 1024


def sftp(vm: VM, command: str) -> None:
    """Run one command of OpenSSH's sftp."""
    _ssh, *options, _end_of_options, target = shlex.split(vm.access.ssh_command)
    words = ["sftp", *options, "-b", "-", target]
    subprocess.run(words, input=command.encode(), check=True, stdout=subprocess.DEVNULL)


def seconds(action: Callable[[], object]) -> float:
    """Measure one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure() -> list[Row]:
    """Measure in turn."""
    settings = resolve([environment(os.environ)])
    with build_launcher(settings, SILENT) as launcher, tempfile.TemporaryDirectory() as folder:
        source, back = Path(folder, "source"), Path(folder, "back")
        with source.open("wb") as file:
            for number in range(MIB):
                line = f"{number} a line of text that a log might hold\n".encode()
                file.write(os.urandom(_BLOCK) if number % 2 else (line * (_BLOCK // len(line) + 1))[:_BLOCK])
        vm = launcher.launch(merge(settings.shape))
        vm.run("sync")
        taken: dict[str, list[float]] = {"put": [], "sftp put": [], "get": [], "sftp get": []}
        for _ in range(ROUNDS):
            taken["sftp put"].append(seconds(lambda: sftp(vm, f"put {source} /var/tmp/by-sftp")))
            taken["put"].append(seconds(lambda: vm.put(source, "/var/tmp/by-us")))
            taken["sftp get"].append(seconds(lambda: sftp(vm, f"get /var/tmp/by-sftp {back}")))
            taken["get"].append(seconds(lambda: vm.get("/var/tmp/by-us", back)))
            assert back.read_bytes() == source.read_bytes()
    return [
        Row(f"`{way}` of {MIB} MiB", tuple(taken[way]), "s", "OpenSSH's sftp", tuple(taken[f"sftp {way}"]), 1.0)
        for way in ("put", "get")
    ]
