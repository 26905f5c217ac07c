"""Peer: `debvm` (Debian's package, https://salsa.debian.org/helmutg/debvm), from its start until SSH answers.

Only where `debvm-create` and `debvm-run` are installed. Its image, of the same release of Debian, is made first and
not counted. It has KVM where we have it. To decide that, it looks at the device's rights only; so where KVM cannot be
used, it has to be given an accelerator and a CPU.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import cold_boot
from benchmarks.clone import clone
from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.support.progress import SILENT

ROUNDS, RELEASE = 3, "trixie"


def create(folder: Path) -> None:
    """Make a key pair and the image."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    words = ["debvm-create", "-r", RELEASE, "-k", str(folder / "key.pub"), "-o", str(folder / "disk.ext4")]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start(folder: Path, accel: str) -> float:
    """Start one; return the seconds until a command by SSH has returned."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    qemu = ["-display", "none", "-serial", "null", "-monitor", "null"]
    if accel == "tcg":
        qemu += ["-machine", "accel=tcg", "-cpu", "max"]
    began = time.perf_counter()
    with process(["debvm-run", "-i", str(folder / "disk.ext4"), "-s", port, "--", *qemu]) as program:
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=2", "-o", "NoHostAuthenticationForLocalhost=yes"]
        login = ["ssh", *options, "-i", str(folder / "key"), "-p", port, "root@127.0.0.1", "true"]
        while subprocess.run(login, check=False, stderr=subprocess.DEVNULL).returncode:
            assert program.poll() is None, "debvm-run has ended"
            time.sleep(0.2)
        return time.perf_counter() - began


@contextlib.contextmanager
def process(command: list[str], output: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command for a block, with both output streams in one; its children end with it."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **streams, start_new_session=True) as program:  # type: ignore[call-overload]
        try:
            yield program
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, 9)


def measure() -> list[Row]:
    """Measure in turn, or nothing where it is not installed."""
    if not shutil.which("debvm-create"):
        print("debvm is not installed: left out")
        return []
    boots, clones, peers = [], [], []
    with (
        build_launcher(resolve([environment(os.environ)]), SILENT) as launcher,
        tempfile.TemporaryDirectory() as folder,
    ):
        create(Path(folder))
        booted, cloned = (merge(resolve([]).shape, {"template": template}) for template in (False, True))
        clone(launcher, cloned)  # makes the template, if there is none
        for _ in range(ROUNDS):
            taken, accel = cold_boot.plugin(launcher, booted)
            boots.append(taken)
            clones.append(clone(launcher, cloned))
            peers.append(start(Path(folder), accel))
    peer = f"debvm ({accel})"
    return [
        Row("a boot until it is ready", tuple(boots), "s", peer, tuple(peers)),
        Row("a clone with its first command", tuple(clones), "s", peer, tuple(peers)),
    ]
