"""The command `virtainers resume`: start VMs from the evidence of failing tests."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_virtainers.cli.common import GuestCommand, check_ssh, note, progress, settings, ssh
from pytest_virtainers.errors import BadTemplate, QEMUCrashed, VirtainerError

if TYPE_CHECKING:
    from pytest_virtainers.evidence.resume import Evidence
    from pytest_virtainers.launching.launcher import Launcher
    from pytest_virtainers.vm.vm import VM

_FAILED = 1


@click.command(cls=GuestCommand)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--export",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Only write the disk as one flat qcow2 file.",
)
@click.option("--disk-only", is_flag=True, help="Boot the disk, even if the memory was saved.")
@click.option(
    "--trust",
    is_flag=True,
    help="Load the memory and download the guest image even if another user or machine wrote FOLDER. QEMU does not "
    "check memory files: use this only if you would run the author's programs on this machine.",
)
def resume(folder: Path, export: Path | None, disk_only: bool, trust: bool, words: tuple[str, ...]) -> int:
    """Start a VM from the evidence of a failing test, and open a shell, or pass COMMAND to its shell, like ssh.

    FOLDER is in the test's report: virtainer-artifacts/TEST/VM.

    \b
    For example:
      virtainers resume virtainer-artifacts/test_upgrade/vm
      virtainers resume virtainer-artifacts/test_upgrade/vm --export disk.qcow2
    """  # noqa: D301
    from pytest_virtainers.evidence import resume
    from pytest_virtainers.evidence.manifest_file import OVERLAY, STATE, shown
    from pytest_virtainers.launching.build import build_launcher

    if not export:
        check_ssh()
    evidence = resume.read(folder, disk_only=disk_only or export is not None, trust=trust)
    with build_launcher(settings(), progress()) as launcher:
        if export:
            resume.export(launcher, evidence, export)
            print(f"{export}: a self-contained disk")
            return 0

        def report(error: VirtainerError) -> None:
            """Print an error with the paths of disk and memory in the folder instead of the container."""
            text = str(error).replace(resume.MEMORY, shown(folder / STATE))
            note(text.replace(resume.DISK, shown(folder / OVERLAY)))

        vm = _launch(launcher, evidence)
        try:
            try:
                vm.machine.wait_until_resumed()
            except QEMUCrashed as error:  # try once more, as for a boot
                note(str(error))
                note("QEMU crashed; starting it once more")
                vm.machine.close()
                vm = _launch(launcher, evidence)
                vm.machine.wait_until_resumed()
        except BadTemplate as error:
            report(error)
            booted = shlex.join(["virtainers", "resume", "--disk-only", str(folder)])
            note(f"to boot the disk without the memory: {booted}")
            return _FAILED
        except VirtainerError as error:
            report(error)
            if not sys.stdin.isatty():
                return _FAILED
            input("virtainers: the VM is running, but SSH does not work. Press Enter to end it: ")
            return _FAILED
        return ssh(vm, " ".join(words))


def _launch(launcher: Launcher, evidence: Evidence) -> VM:
    from pytest_virtainers.evidence import resume

    vm = resume.launch(launcher, evidence)
    note(f"to open its console: {vm.access.console_command}")
    return vm


COMMANDS = (resume,)
