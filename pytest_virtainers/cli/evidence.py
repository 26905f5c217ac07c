"""Evidence of failing tests: machines that are started again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_virtainers.cli.common import GuestCommand, check_ssh, progress, settings, ssh, tell
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
    help="Write its disk as one flat qcow2 file instead.",
)
@click.option("--disk-only", is_flag=True, help="Boot its disk, also where its memory was kept.")
@click.option(
    "--trust",
    is_flag=True,
    help="Load its memory, and fetch its guest image, also if another user or machine wrote it. QEMU was not made to "
    "withstand a hostile memory file: use it for people whom you would let run programs here.",
)
def resume(folder: Path, export: Path | None, disk_only: bool, trust: bool, words: tuple[str, ...]) -> int:
    """Start a machine again from its evidence, and open a shell in it, or hand COMMAND to its shell, as ssh does.

    FOLDER is as the test's report names it: virtainer-artifacts/TEST/MACHINE.

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
            print(f"{export}: a disk that needs no other")
            return 0

        def report(error: VirtainerError) -> None:
            """Call disk and memory by their names in the folder, as the user knows them."""
            text = str(error).replace(resume.MEMORY, shown(folder / STATE))
            tell(text.replace(resume.DISK, shown(folder / OVERLAY)))

        vm = _kept(launcher, evidence)
        try:
            try:
                vm.machine.wait_until_resumed()
            except QEMUCrashed as error:  # as when a machine boots: once more
                tell(str(error))
                tell("QEMU has crashed: starting it anew, once")
                vm.machine.close()
                vm = _kept(launcher, evidence)
                vm.machine.wait_until_resumed()
        except BadTemplate as error:
            report(error)
            booted = shlex.join(["virtainers", "resume", "--disk-only", str(folder)])
            tell(f"to boot its disk without its memory: {booted}")
            return _FAILED
        except VirtainerError as error:
            report(error)
            if not sys.stdin.isatty():
                return _FAILED
            input("virtainers: it runs, but does not let us in. Press Enter to end it: ")
            return _FAILED
        return ssh(vm, " ".join(words))


def _kept(launcher: Launcher, evidence: Evidence) -> VM:
    from pytest_virtainers.evidence import resume

    vm = resume.launch(launcher, evidence)
    tell(f"its console: {vm.access.console_command}")
    return vm


COMMANDS = (resume,)
