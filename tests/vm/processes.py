"""The processes of a run."""

import subprocess
import sys
import time
from pathlib import Path

from pytest_virtainers.engine.docker.engine import DockerEngine

_FIND = "import sys; from pytest_virtainers.engine.detect import find; find(sys.argv[1]).close()"


def removal_seconds(engine: DockerEngine) -> float:
    """Return the seconds after which nothing of a killed run is left: five, or more on a busy host.

    A reaper first starts Python and finds the engine, which takes 0.6 s on a quiet host.
    """
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", _FIND, engine.url], check=True)
    return max(5.0, 6 * (time.monotonic() - began))


def console_of(engine: DockerEngine, container: str) -> bytes:
    """Return the console output of a VM, from its container."""
    session = engine.api.exec_create(container, ["cat", "/run/virtainer/console.log"])["Id"]
    shown: bytes = engine.api.exec_start(session)
    return shown


def is_booting(engine: DockerEngine, owner: int) -> bool:
    """Return whether Linux has begun to boot in a VM of a process."""
    running = {"label": ["virtainers=vm", f"virtainers.owner-pid={owner}"], "status": "running"}
    found = engine.api.containers(filters=running)
    return any(b"Linux version" in console_of(engine, each["Id"]) for each in found)


def reaper_of(pid: int) -> int:
    """Return the process id of a run's reaper, from that of the run."""
    children = [
        each for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]
    (found,) = [each for each in children if b"engine.reaper" in Path(f"/proc/{each}/cmdline").read_bytes()]
    return int(found)
