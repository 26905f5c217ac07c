"""The command `virtainers`: prepare images, and say what this machine has."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers import values
from pytest_virtainers.errors import BadTemplate, QEMUCrashed, StoreError, VirtainerError
from pytest_virtainers.paths import locked
from pytest_virtainers.progress import Progress
from pytest_virtainers.settings import environment, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_virtainers.handle.vm import VM
    from pytest_virtainers.manager import Manager
    from pytest_virtainers.settings import Settings

_FAILED = 1
_OPTIONS = {
    "ram": "memory, such as 2G",
    "cpus": "number of processors",
    "disk": "size of the disk, such as 20G",
    "user": "login user",
    "internet": "off: nothing leaves the VM's network",
    "accel": "kvm, tcg or auto",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; give 0 when it did what was asked, 1 when it failed (2 is argparse's: wrong usage)."""
    parser = argparse.ArgumentParser(
        prog="virtainers",
        description="Disposable virtual machines in containers. Settings come from VIRTAINER_X in the environment, "
        "for example VIRTAINER_ENGINE=podman.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build the runtime image and a guest image, if they are not there")
    build.add_argument("image", nargs="?", default=None, help="catalogue name (default: the image setting)")
    build.set_defaults(run=_build)
    launch = commands.add_parser(
        "run",
        usage="virtainers run [OPTION]... [IMAGE] [-- COMMAND...]",
        help="launch a VM, and open a shell in it or run a command; it ends with that",
        description="Launch a VM, and open a shell in it, or run COMMAND; it ends with that. For example: "
        "virtainers run debian-13 --ram 2G --package nginx; virtainers run -- uname -a",
        epilog="The exit code is that of the shell or command; 1 also when there was no VM, 255 when ssh failed.",
    )
    launch.add_argument("image", nargs="?", help="catalogue name, path or URL (default: the image setting)")
    launch.add_argument("--name", default="vm", help="of the VM and its guest (default: %(default)s)")
    for option, what in _OPTIONS.items():
        launch.add_argument(f"--{option}", help=what)
    launch.add_argument("--user-data", type=Path, metavar="FILE", help="cloud-config for cloud-init")
    launch.add_argument(
        "--package", dest="packages", metavar="NAME", action="append", help="install this; can be given again"
    )
    launch.add_argument("--cold", action="store_true", help="boot it, rather than clone one that has booted")
    launch.set_defaults(run=_run, command=[])
    store = commands.add_parser("store", help="look at the images and templates that are kept, and remove some")
    actions = store.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("ls", help="list them, the least recently used first")
    listing.set_defaults(run=_store_ls)
    removal = actions.add_parser("rm", help="remove some that are not in use")
    removal.add_argument("place", nargs="+", help="as `store ls` shows it: guests/… or templates/…")
    removal.set_defaults(run=_store_rm)
    prune = actions.add_parser("prune", help="remove the least recently used ones until the rest fits")
    prune.add_argument("--limit", type=_size, help="such as 5G, or 0 (default: the store-limit setting)")
    prune.set_defaults(run=_store_prune)
    again = commands.add_parser("resume", help="start a machine again from its evidence, and open a shell in it")
    again.add_argument("folder", type=Path, help="as the test's report names it: virtainer-artifacts/TEST/MACHINE")
    again.add_argument("--export", type=Path, metavar="FILE", help="write its disk as one flat qcow2 file instead")
    again.add_argument("--disk-only", action="store_true", help="boot its disk, also where its memory was kept")
    again.add_argument("command", nargs="*", help="run this instead of a shell (put -- before its options)")
    again.set_defaults(run=_resume)
    doctor = commands.add_parser("doctor", help="say what this machine has, and what to mend")
    doctor.set_defaults(run=_doctor)
    given, command = _split(sys.argv[1:] if arguments is None else arguments)
    parsed, unknown = parser.parse_known_args(given)
    runs_command = hasattr(parsed, "command")
    if unknown:
        hint = "; a command for the VM stands after --" if runs_command and command is None else ""
        parser.error(f"unrecognized arguments: {shlex.join(unknown)}{hint}")
    if command is not None:
        if not runs_command:
            parser.error("-- begins a command for the VM; this one runs none")
        parsed.command = command
    try:
        run: int = parsed.run(parsed, resolve([environment(os.environ)]))
    except VirtainerError as error:
        print(f"virtainers: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return 130
    return run


def _split(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Divide at the first `--`: what follows is for a VM, whatever it looks like."""
    words = list(words)
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _size(text: str) -> int:
    try:
        return values.size_mib(least=0)(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _build(parsed: argparse.Namespace, settings: Settings) -> int:
    from pytest_virtainers.manager import Manager

    image = parsed.image or settings.shape["image"]
    with Manager(settings, _progress()) as manager:
        guest = manager.guest(image)
        print(f"{image} is ready on {manager.engine}: {guest.key}, sha256 {guest.digest}")
    return 0


def _run(parsed: argparse.Namespace, _settings: Settings) -> int:
    from pytest_virtainers.standalone import launch

    given = {name: getattr(parsed, name) for name in ("image", "name", "user_data", "packages", *_OPTIONS)}
    if parsed.cold:
        given["template"] = False
    with launch(progress=_progress(), **given) as vm:
        print(
            f"virtainers: {vm.name} ({vm.spec.image}) is at {vm.ip}; its console: {vm.console_command}",
            file=sys.stderr,
        )
        # ssh hands one line to the guest's shell: quoted, so that the words arrive as they were given.
        line = [shlex.join(parsed.command)] if parsed.command else []
        return subprocess.run([*shlex.split(vm.ssh_command), *line], check=False).returncode


def _store_ls(_parsed: argparse.Namespace, settings: Settings) -> int:
    from pytest_virtainers import housekeeping
    from pytest_virtainers.manager import Manager

    with Manager(settings, _progress()) as manager, manager.store() as shop:
        kept = housekeeping.contents(manager.engine, shop)
    for each in kept:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used))
        print(f"{each.place:40} {each.size_mib:6} MiB  {used}  {'in use' if each.in_use else '      '}  {each.what}")
    print(f"{sum(each.size_mib for each in kept)} MiB in {settings.store}, of {settings.store_limit} MiB")
    return 0


def _store_rm(parsed: argparse.Namespace, settings: Settings) -> int:
    from pytest_virtainers import housekeeping
    from pytest_virtainers.manager import Manager

    with Manager(settings, _progress()) as manager, manager.store() as shop, locked("store"):
        kept = housekeeping.contents(manager.engine, shop)
        known = {each.place: each for each in kept}
        for place in parsed.place:
            if place not in known:
                raise StoreError(f"{place} is not in the store: see virtainers store ls")
            if known[place].in_use:
                raise StoreError(f"{place} is in use by a running VM or by a test run")
            if made_on_it := [each.place for each in kept if each.base == place and each.place not in parsed.place]:
                raise StoreError(f"{place} is needed by {made_on_it[0]}, which is made on it: remove that, too")
        housekeeping.remove(shop, parsed.place)
    return 0


def _store_prune(parsed: argparse.Namespace, settings: Settings) -> int:
    from pytest_virtainers import housekeeping
    from pytest_virtainers.manager import Manager

    limit = settings.store_limit if parsed.limit is None else parsed.limit
    with Manager(settings, _progress()) as manager, manager.store() as shop:
        gone = housekeeping.prune(manager.engine, shop, limit)
    for each in gone:
        print(f"removed {each.place} ({each.size_mib} MiB)")
    return 0


def _resume(parsed: argparse.Namespace, settings: Settings) -> int:
    from pytest_virtainers import resume
    from pytest_virtainers.evidence import STATE
    from pytest_virtainers.manager import Manager

    with Manager(settings, _progress()) as manager:
        if parsed.export:
            resume.export(manager, parsed.folder, parsed.export)
            print(f"{parsed.export}: a disk that needs no other")
            return 0
        vm = _kept(manager, parsed)
        try:
            try:
                vm.wait_until_resumed()
            except QEMUCrashed as error:  # as when a machine boots: once more
                print(f"virtainers: {error}\nvirtainers: QEMU has crashed: starting it anew, once", file=sys.stderr)
                vm.close()
                vm = _kept(manager, parsed)
                vm.wait_until_resumed()
        except BadTemplate as error:
            said = str(error).replace(resume.MEMORY, str(parsed.folder / STATE))
            print(f"virtainers: {said}", file=sys.stderr)
            booted = shlex.join(["virtainers", "resume", "--disk-only", str(parsed.folder)])
            print(f"virtainers: to boot its disk without its memory: {booted}", file=sys.stderr)
            return _FAILED
        except VirtainerError as error:
            print(f"virtainers: {error}", file=sys.stderr)
            if not sys.stdin.isatty():
                return _FAILED
            input("virtainers: it runs, but does not let us in. Press Enter to end it: ")
            return _FAILED
        words = [*shlex.split(vm.ssh_command), *parsed.command]
        return subprocess.run(words, check=False).returncode


def _kept(manager: Manager, parsed: argparse.Namespace) -> VM:
    from pytest_virtainers import resume

    vm = resume.launch(manager, parsed.folder, disk_only=parsed.disk_only)
    print(f"virtainers: its console: {vm.console_command}", file=sys.stderr)
    return vm


def _doctor(_parsed: argparse.Namespace, settings: Settings) -> int:
    from pytest_virtainers import doctor

    findings = doctor.examine(settings)
    for finding in findings:
        print(finding)
    return _FAILED if any(finding.fatal for finding in findings) else 0


def _progress() -> Progress:
    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    return Progress(write, live=sys.stderr.isatty())


if __name__ == "__main__":
    sys.exit(main())
