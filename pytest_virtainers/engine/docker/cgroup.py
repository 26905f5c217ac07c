"""The memory of a local container, from its control group: engines take a second to say it."""

from __future__ import annotations

from pathlib import Path

_PROC, _MOUNT = Path("/proc"), Path("/sys/fs/cgroup")
_MIB = 2**20


def memory_used_mib(pid: int, container: str) -> int | None:
    """Return the MiB that a container takes without page cache; `None` where that cannot be seen from here.

    Args:
        pid: of its first process, as the engine says.
        container: its id, which must be in the group's path: where process ids are not the engine's, or a rootless
            engine has no groups of its own, that process is another one, or its group is that of others, too.
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
    # Version 1 says `rss`; with groups below this one, `total_rss`.
    return int(facts["anon"] if "anon" in facts else facts["total_rss"]) // _MIB
