"""The command `snapshot`: save the VM's RAM and disk in its overlay, and restore them in place.

    docker exec CONTAINER snapshot save|load|delete NAME
    docker exec CONTAINER snapshot save NAME --helper

With `--helper`, only if a helper waits in the guest, which sets the clock when a snapshot is restored
(`virtainer.clone_agent`).

https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html (snapshot-save, -load and -delete are jobs)
"""

from __future__ import annotations

import re
import sys
import time
from typing import Any

from virtainer import clone_agent, qmp
from virtainer.protocol import NO_HELPER

_NODE = "disk"  # which also holds the RAM
_POLL_SECONDS = 0.005
_USAGE = "usage: snapshot save|load|delete NAME (of letters, digits, - and _)"


def run(monitor: qmp.Monitor, action: str, name: str) -> None:
    """Run an action to its end. Raises qmp.Refused with QEMU's message, or EOFError if QEMU has ended."""
    job = f"{action}-{name}"
    arguments: dict[str, Any] = {"job-id": job, "tag": name, "devices": [_NODE]}
    if action != "delete":
        arguments["vmstate"] = _NODE
    monitor.ask(f"snapshot-{action}", **arguments)
    while (state := _job(monitor, job))["status"] != "concluded":
        time.sleep(_POLL_SECONDS)
    monitor.ask("job-dismiss", id=job)
    if "error" in state:
        raise qmp.Refused(state["error"])


def check(monitor: qmp.Monitor) -> None:
    """Raise qmp.Refused if the machine has disks that snapshots do not include."""
    from virtainer import devices  # 16 ms that a restore does not need

    if disks := devices.added_disks(monitor):
        raise qmp.Refused(f"snapshots do not include added disks ({', '.join(disks)}): remove them first")


def finished(change: dict[str, Any]) -> tuple[str, str] | None:
    """Return action and name from the data of a JOB_STATUS_CHANGE event, if a snapshot's `save` or `load` succeeded.

    Both resume the guest within the job; `pending` comes after that, and only without errors.
    """
    action, _, name = change["id"].partition("-")
    return (action, name) if change["status"] == "pending" and action in {"save", "load"} else None


def _job(monitor: qmp.Monitor, name: str) -> dict[str, Any]:
    return next(each for each in monitor.ask("query-jobs") if each["id"] == name)


def main(arguments: list[str]) -> int:
    """Run the command: exit code 1 if QEMU refuses, 2 for wrong usage, `NO_HELPER` if no helper waits."""
    helper = arguments[:1] == ["save"] and arguments[2:] == ["--helper"]
    if helper:
        arguments = arguments[:2]
    if (
        len(arguments) != 2  # noqa: PLR2004
        or arguments[0] not in {"save", "load", "delete"}
        or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", arguments[1])
    ):
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        with qmp.connect() as connection:
            monitor = qmp.Monitor(connection)
            if arguments[0] == "save":
                check(monitor)
            if helper and not clone_agent.waits(monitor):
                print("snapshot: no helper waits in the guest", file=sys.stderr)
                return NO_HELPER
            run(monitor, *arguments)
    except (OSError, EOFError, qmp.Refused) as error:
        print(f"snapshot: {error or 'QEMU ended'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
