"""The command `evidence`: save a VM's disk, and optionally its memory, into IMAGE_DIR/evidence.

    docker exec CONTAINER evidence [--memory]

`overlay.qcow2` is the VM's disk as one layer on the guest disk, whatever layers are between; `seed.iso` is its seed.
With `--memory`, `state` is the rest of the machine, and RESUME=FOLDER in another container resumes it.
The VM is paused while it is saved. After QEMU's end, the disk can still be saved. An empty line
is printed whenever more has been copied, which shows progress; at the end, facts about the VM as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtainer import overlay, protocol, qcow2, qmp, template
from virtainer.devices import added, pass_file
from virtainer.privileges import open_kvm
from virtainer.settings import Settings
from virtainer.tools import ToolError, run

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

_POLL_SECONDS = 0.02
_REPORT_SECONDS = 1.0


def collect(settings: Settings, *, memory: bool) -> dict[str, Any]:
    """Fill the folder and return the facts. Raises ToolError, OSError, or qmp.Refused with QEMU's words."""
    folder = settings.image_dir / protocol.EVIDENCE
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    facts: dict[str, Any] = {"memory": False}
    with _reporting(folder), contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(qmp.connect())
            monitor = qmp.Monitor(connection)
            ran = monitor.ask("query-status")["status"] == "running"
        except (OSError, EOFError):  # QEMU has ended, or hangs
            return {**facts, **_disk(settings, folder)}
        if memory and (devices := added(monitor)):
            raise qmp.Refused(
                f"{', '.join(devices)}: added while the machine ran, and another one, which has no such device, "
                "could not resume from its memory"
            )
        if ran:
            monitor.ask("stop")
        try:
            if memory:
                _save_state(monitor, connection, folder / protocol.EVIDENCE_STATE)
                kvm = open_kvm(settings.accel, settings.arch)
                facts |= {"memory": True, "machine": template.machine_facts(settings, kvm)}
            return {**facts, **_disk(settings, folder)}
        finally:
            if ran:
                monitor.ask("cont")


@contextlib.contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    """Print an empty line each second in which the folder has grown."""
    done = threading.Event()

    def report() -> None:
        reported = 0
        while not done.wait(_REPORT_SECONDS):
            size = sum(each.stat().st_blocks for each in folder.iterdir())
            if size > reported:
                print(flush=True)
            reported = size

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _save_state(monitor: qmp.Monitor, connection: socket.socket, path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        fdset = pass_file(monitor, connection, file)
        try:
            monitor.ask("migrate", uri=f"file:/dev/fdset/{fdset}")
            while (progress := monitor.ask("query-migrate"))["status"] not in {"completed", "failed", "cancelled"}:
                time.sleep(_POLL_SECONDS)
        finally:
            monitor.ask("remove-fd", **{"fdset-id": fdset})
    finally:
        os.close(file)
    if progress["status"] != "completed":
        raise qmp.Refused(f"migrate: {progress.get('error-desc', progress['status'])}")


def _disk(settings: Settings, folder: Path) -> dict[str, Any]:
    disk, copy = overlay.path(settings.image_dir), folder / protocol.EVIDENCE_DISK
    _check(disk)
    layers = json.loads(run("qemu-img", "info", "-U", "-f", "qcow2", "--backing-chain", "--output=json", str(disk)))
    above, base = layers[1], layers[-1]
    # The copy has neither snapshots nor what the guest has freed; QEMU may still have the original open.
    backed = ("-F", above["format"], "-B", above["filename"])
    run("qemu-img", "convert", "-q", "-U", "-f", "qcow2", "-O", "qcow2", *backed, str(disk), str(copy))
    if above["filename"] != base["filename"]:
        run("qemu-img", "rebase", "-q", "-f", "qcow2", "-F", base["format"], "-b", base["filename"], str(copy))
    cloned = settings.template if not settings.template_save else None
    seed = cloned / "seed.iso" if cloned else settings.seed_iso
    for each in (seed, Path(protocol.SEEDS, protocol.SEED_ISO)):
        if each.exists() and each.stat().st_size:
            shutil.copyfile(each, folder / protocol.EVIDENCE_SEED)
            break
    return {"base": base["filename"], "virtual_size": layers[0]["virtual-size"]}


def _check(disk: Path) -> None:
    """Raise ToolError unless the overlay, which QEMU writes to, is on a layer with a path."""
    try:
        backing = overlay.read_header(disk).backing
    except qcow2.Refused as refused:
        raise ToolError(f"the overlay {disk} {refused}", 1) from None
    if not backing.startswith("/"):
        raise ToolError(f"the overlay {disk} is made on {backing!r}, which is not a path", 1)


def main(arguments: list[str]) -> int:
    """Run the command: exit code 1 when it does not work, 2 for wrong usage."""
    if arguments not in ([], ["--memory"]):
        print("usage: evidence [--memory]", file=sys.stderr)
        return 2
    try:
        facts = collect(Settings.from_env(os.environ), memory=bool(arguments))
    except (OSError, EOFError, ToolError, qmp.Refused) as error:
        print(f"evidence: {error or 'QEMU ended'}", file=sys.stderr)
        return 1
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
