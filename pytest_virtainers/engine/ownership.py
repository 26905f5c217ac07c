"""Who owns an object on the engine, written in its labels, and whether that owner still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LABEL = "virtainers"
"""Every object of ours carries this label; its value is the kind of object."""
MACHINE, MACHINES_NETWORK = "machine", "machines-network"
"""Kinds that may outlive who made them: a VM that is kept, and the network of all such VMs."""
MACHINE_NAME = f"{LABEL}.vm"
"""The label of a VM's container with the VM's name."""

_RUN, _PID, _STARTED, _BOOT, _HOST = (
    f"{LABEL}.{part}" for part in ("run", "owner-pid", "owner-started", "owner-boot", "owner-host")
)
_PROC = Path("/proc")
_ENDED = {"Z", "X"}  # states in proc(5): zombie, dead


def labels(kind: str, run_id: str) -> dict[str, str]:
    """Make the labels that name this process as the owner."""
    pid = os.getpid()
    return {
        LABEL: kind,
        _RUN: run_id,
        _PID: str(pid),
        _STARTED: _start_time(pid) or "",
        _BOOT: _boot_id(),
        _HOST: _host(),
    }


def run(found: Mapping[str, str]) -> str:
    """Give the run named in an object's labels."""
    return found.get(_RUN, "")


def lasting_name(machine: str) -> str:
    """Give the name of a kept VM's container; it gets that when the VM is ready."""
    return f"virtainers-{machine}"


def is_kept(container: Mapping[str, Any]) -> bool:
    """Tell whether a container, as the engine lists it, is a VM that was ready and is kept, whoever made it."""
    found = container.get("Labels") or {}
    return found.get(LABEL) == MACHINE and f"/{lasting_name(found.get(MACHINE_NAME, ''))}" in container["Names"]


def is_dead(found: Mapping[str, str]) -> bool:
    """Tell whether the owner named in `found` is surely gone; in doubt it lives.

    A pid means something only on its host, in its boot and in its pid namespace.
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
    """Tell whether a process runs and, where its start time can be read, is the one that `started` then."""
    facts = _facts(pid)
    if facts and facts[0] in _ENDED:  # its parent has not asked for its exit code yet
        return False
    if facts and started:
        return facts[19] == started
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and is another user's
        return True
    return True


def _host() -> str:
    """Name this host and the pid namespace we are in."""
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


def _start_time(pid: int) -> str | None:
    """Give the start time of a process in clock ticks since boot (proc(5), field 22); `None` as `_facts` does."""
    facts = _facts(pid)
    return facts[19] if facts else None


def _facts(pid: int) -> list[str] | None:
    """Return what proc(5) says of a process in `stat`, from field 3 on.

    None when it is gone, which may happen while we read, when it is hidden (hidepid), or without /proc.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()
