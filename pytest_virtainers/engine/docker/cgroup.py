"""The memory of a local container, read from its control group; an engine takes a second to report it."""

from __future__ import annotations

from pathlib import Path

_PROC, _MOUNT = Path("/proc"), Path("/sys/fs/cgroup")
_MIB = 2**20


def memory_used_mib(pid: int, container: str) -> int | None:
    """Return the MiB that a container uses without page cache; `None` if this process cannot read it.

    Args:
        pid: process id of its first process, as the engine reports it.
        container: its id, which must be in the group's path. Otherwise the process is a different one (in another pid
            namespace), or shares its group with others (under a rootless engine).
    """
    try:
        groups = (_PROC / str(pid) / "cgroup").read_text().splitlines()
        for _, controllers, path in (each.split(":", 2) for each in groups):
            root = _MOUNT if not controllers else _MOUNT / "memory"
            if container in path and (not controllers or "memory" in controllers.split(",")):
                return _anonymous(root / path.lstrip("/") / "memory.stat")
    except (OSError, ValueError, KeyError):
        return None
    return None


def _anonymous(file: Path) -> int:
    facts = dict(line.split() for line in file.read_text().splitlines())
    # Version 1: `rss`; with groups below this one, `total_rss`.
    return int(facts["anon"] if "anon" in facts else facts["total_rss"]) // _MIB
