"""Peer: `virtme-ng` (https://github.com/arighi/virtme-ng), from its start until a command has printed in the guest.

Only where `vng` and what it needs are installed. Its guest is a kernel on the file system of this machine, without
systemd, sshd or a disk of its own. The kernel is that of this machine's Debian, downloaded first and not counted. It
has KVM where we have it, and the processors and memory of our clone.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import cold_boot
from benchmarks.clone import clone
from benchmarks.debvm import process
from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.support.progress import SILENT

ROUNDS, NEEDED = 3, ("vng", "busybox", "modprobe", "apt-get")
VIRTIOFSD = Path("/usr/libexec/virtiofsd")
"""Without it, QEMU's own 9p is used. virtme-ng would wait 3 s for the older virtiofsd that came with QEMU 7."""


def kernel(folder: Path) -> Path:
    """Download and unpack Debian's kernel, without installing it; return the path of its image."""
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
    words = ["apt-cache", "depends", f"linux-image-{architecture.strip()}"]
    depends = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    (package,) = re.findall(r"Depends: (linux-image-\S+)", depends)
    # As root, apt-get warns that its own user cannot write to the folder.
    subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    (archive,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    (image,) = (folder / "boot").glob("vmlinuz-*")
    subprocess.run(["depmod", "-b", folder, image.name.removeprefix("vmlinuz-")], check=True)
    return image


def start(image: Path, spec: Spec, accel: str) -> float:
    """Start one; return the seconds until its command has printed."""
    # Where this machine has no udev, only a verbose start shows what the command prints: on the console.
    options = ["--verbose", "--run", str(image), "--cpus", str(spec.cpus), "--memory", f"{spec.ram}M"]
    if accel == "tcg":
        options.append("--disable-kvm")
    if not VIRTIOFSD.exists():
        options.append("--force-9p")
    began = time.perf_counter()
    with process(["vng", *options, "--exec", "echo it runs"], subprocess.PIPE) as program:
        assert program.stdout
        said: list[bytes] = []
        while said[-1:] != [b"it runs"]:
            line = program.stdout.readline()
            assert line, b"\n".join(said[-20:]).decode(errors="replace")
            said.append(line.strip())
        taken = time.perf_counter() - began
        program.communicate(timeout=120)  # the guest switches itself off
    return taken


def measure() -> list[Row]:
    """Measure in turn, or nothing where it is not installed."""
    if missing := [each for each in NEEDED if not shutil.which(each)]:
        print(f"virtme-ng is left out: {', '.join(missing)} not installed")
        return []
    spec = merge(resolve([]).shape, {"template": True})
    clones, peers = [], []
    with (
        build_launcher(resolve([environment(os.environ)]), SILENT) as launcher,
        tempfile.TemporaryDirectory() as folder,
    ):
        image = kernel(Path(folder))
        _, accel = cold_boot.plugin(launcher, spec)  # makes the template, if there is none
        for _ in range(ROUNDS):
            clones.append(clone(launcher, spec))
            peers.append(start(image, spec, accel))
    return [Row("a clone with its first command", tuple(clones), "s", f"virtme-ng ({accel})", tuple(peers))]
