"""Check this machine: engine, KVM, image tools, memory, store; report remedies."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.engine import runtime_image
from pytest_virtainers.engine.detect import find
from pytest_virtainers.engine.reaper import Reaper
from pytest_virtainers.errors import EngineNotFound, VirtainerError
from pytest_virtainers.guests.catalogue import catalogue
from pytest_virtainers.store.places import MOUNT
from pytest_virtainers.store.volume import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.engine.base import Engine

_ENOUGH_DISK_GIB = 5


@dataclass(frozen=True)
class Finding:
    """One line of the report: topic, observation, remedy, and whether VMs cannot start without it."""

    topic: str
    seen: str
    remedy: str = ""
    fatal: bool = False

    def __str__(self) -> str:
        mark = "FAIL" if self.fatal else "note" if self.remedy else "ok  "
        remedy = f"\n       remedy: {self.remedy}" if self.remedy else ""
        return f"{mark} {self.topic}: {self.seen}{remedy}"


def examine(settings: Settings) -> list[Finding]:
    """Check the host, the engine and the images, without changing anything."""
    findings = [_python(), _kvm(), _base_tool(), _ssh()]
    try:
        engine = find(settings.engine)
    except EngineNotFound as error:
        return [*findings, Finding("engine", str(error), fatal=True)]
    try:
        findings += _engine(engine, settings)
    except VirtainerError as error:
        findings.append(Finding("engine", str(error), "make the engine answer, then run doctor again", fatal=True))
    finally:
        engine.close()
    return findings


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} on {platform.system()} {platform.release()}")


def _kvm() -> Finding:
    """Check KVM like the supervisor: the CPU must support it, too, not only the device node exist."""
    if not Path("/dev/kvm").exists():
        return Finding("kvm", "no /dev/kvm: VMs are emulated, a boot takes about a minute")
    flags = Path("/proc/cpuinfo").read_text().split()
    if platform.machine() == "x86_64" and not {"vmx", "svm"} & set(flags):
        return Finding("kvm", "/dev/kvm exists, but the CPU has neither vmx nor svm: VMs are emulated")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Finding("kvm", "exists, but this user cannot open it", "add this user to the group kvm")
    return Finding("kvm", "usable")


def _base_tool() -> Finding:
    if shutil.which("mmdebstrap"):
        return Finding("mmdebstrap", "installed: images can be built without a container registry")
    return Finding("mmdebstrap", "not installed; needed only if no container registry can be reached")


def _ssh() -> Finding:
    if shutil.which("ssh"):
        return Finding("ssh", "installed: the command virtainers uses it to open shells")
    return Finding(
        "ssh", "not installed", "install OpenSSH's client for the command virtainers; tests do not need it"
    )


def _engine(engine: Engine, settings: Settings) -> Iterator[Finding]:
    yield Finding("engine", str(engine))
    yield Finding("memory", f"{engine.memory_mib()} MiB on the engine's host")
    if engine.storage_driver() == "vfs":  # rootless Podman without fuse-overlayfs, on a kernel that requires it
        yield Finding(
            "storage driver",
            "vfs: the engine copies the whole runtime image for each VM, which takes seconds",
            "use overlay (Podman: install fuse-overlayfs, then run podman system reset, which removes all its data)",
        )
    image = runtime_image.reference()
    if not runtime_image.present(engine):
        yield Finding("runtime image", f"{image} is built at first use, or now: virtainers build")
        return
    yield Finding("runtime image", image)
    yield from _store(engine, settings, image)


def _store(engine: Engine, settings: Settings, image: str) -> Iterator[Finding]:
    try:
        run_id = f"doctor-{os.getpid()}"
        with Reaper(engine, run_id), open_store(engine, settings.store, image, run_id) as store:
            free_gib = int(store.shell(f"df -Pk {MOUNT} | awk 'NR==2 {{print $4}}'")) // (1024 * 1024)
            # Not with `store.manifest`, which would mark the places as used.
            places = store.shell(f"cd {MOUNT} && ls -1 guests/*/manifest.json 2>/dev/null || true").split()
            entries = set(catalogue().values())
            here = sorted(entry.name for entry in entries if f"{entry.place}/manifest.json" in places)
    except VirtainerError as error:
        yield Finding("store", str(error), "choose another store with VIRTAINER_STORE", fatal=True)
        return
    space = f"{settings.store}, {free_gib} GiB free"
    yield Finding("store", space, "free some space" if free_gib < _ENOUGH_DISK_GIB else "")
    yield Finding(
        "guest images",
        f"in the store: {', '.join(here) or 'none'}; {len(entries) - len(here)} more in the catalogue",
    )
