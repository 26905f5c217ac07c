"""The owner of an object on the engine: the process named in its labels, and whether it is still alive."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_virtainers.engine.facts import ContainerInfo

LABEL = "virtainers"
"""Every object of this project has this label; its value is the kind of object."""
DETACHED, DETACHED_NETWORK = "machine", "machines-network"
"""Kinds that may outlive their process: a detached container, and the network of all of these."""
NAME = f"{LABEL}.vm"
"""The label with the name by which users know what runs in a container."""

_RUN, _PID, _STARTED, _BOOT, _HOST = (
    f"{LABEL}.{part}" for part in ("run", "owner-pid", "owner-started", "owner-boot", "owner-host")
)
_PROC = Path("/proc")
_ENDED = {"Z", "X"}  # states in proc(5): zombie, dead


def labels(kind: str, run_id: str) -> dict[str, str]:
    """Return the labels that name this process as the owner."""
    pid = os.getpid()
    return {
        LABEL: kind,
        _RUN: run_id,
        _PID: str(pid),
        _STARTED: start_time(pid) or "",
        _BOOT: _boot_id(),
        _HOST: _host(),
    }


def run(found: Mapping[str, str]) -> str:
    """Return the run that is named in an object's labels."""
    return found.get(_RUN, "")


def lasting_name(name: str) -> str:
    """Return the name that a detached container gets when it is to stay; `name` is the one in its label `NAME`."""
    return f"virtainers-{name}"


def is_kept(container: ContainerInfo) -> bool:
    """Return whether a container is detached and has its lasting name, whichever process created it."""
    labels = container.labels
    return labels.get(LABEL) == DETACHED and container.name == lasting_name(labels.get(NAME, ""))


def is_dead(found: Mapping[str, str]) -> bool:
    """Return whether the owner named in these labels has certainly ended; in doubt it is alive.

    A process id is valid only on its host, during its boot and in its pid namespace.
    """
    host, pid = found.get(_HOST, ""), found.get(_PID, "")
    if host.partition("/")[0] != _host().partition("/")[0] or not pid.isdecimal():
        return False
    then, now = found.get(_BOOT), _boot_id()
    if then and now and then != now:
        return True
    if host != _host():
        return False
    return not _lives(int(pid), found.get(_STARTED))


def _lives(pid: int, started: str | None) -> bool:
    """Return whether a process is alive and, where its start time can be read, is the one that `started` then."""
    facts = _facts(pid)
    if facts and facts[0] in _ENDED:  # its parent has not read its exit code yet
        return False
    if facts and started:
        return facts[19] == started
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return True


def _host() -> str:
    """Return the names of this host and of this process's pid namespace."""
    try:
        namespace = str((_PROC / "self/ns/pid").stat().st_ino)
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{namespace}"


def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_time(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot (proc(5), field 22); `None` as `_facts` does."""
    facts = _facts(pid)
    return facts[19] if facts else None


def _facts(pid: int) -> list[str] | None:
    """Return the fields of a process in `stat` (proc(5)), from field 3 on.

    `None` if it has ended (perhaps during the read), if it is hidden (hidepid), or without /proc.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()
