"""`virtainers run`: launch a VM for a shell or command, or leave it running as a detached VM."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_virtainers.cli import shape
from pytest_virtainers.cli.common import OPTIONS, GuestCommand, check_ssh, note, progress, settings, ssh, usage
from pytest_virtainers.cli.complete import image_names_or_files
from pytest_virtainers.config.arguments import SETTINGS

if TYPE_CHECKING:
    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.config.spec import Spec


@click.command(cls=GuestCommand)
@click.argument("image", required=False, shell_complete=image_names_or_files)
@shape.options([*shape.OF_VMS, SETTINGS["reach"]])
@shape.seed_iso
@click.option("--cold", is_flag=True, help="Boot the VM rather than clone one: --template off.")
@click.option("--persist", type=click.Path(file_okay=False, path_type=Path), help="Folder in which the disk stays.")
@click.option("--vnc", is_flag=True, help="Show the screen to VNC viewers while the command runs.")
@click.option("-d", "--detach", is_flag=True, help="Leave the VM running when it is ready.")
@click.option(
    "--rm",
    "auto_remove",
    is_flag=True,
    help="With --detach: remove the VM when it is switched off. Without, it is removed anyway.",
)
def run(words: tuple[str, ...], **given: Any) -> int:
    """Launch a VM, and open a shell in it, or run COMMAND; the VM ends with that.

    IMAGE is a name of the catalogue (virtainers images ls), a path, a URL, or docker-image://NAME; by default
    debian-13. With --detach the VM stays until virtainers rm removes it; all such VMs find each other by name.
    The options are the marker's arguments. VIRTAINER_IMAGE, VIRTAINER_RAM and so on set other defaults.

    \b
    For example:
      virtainers run debian-13 --ram 2G --package nginx
      virtainers run --file nginx.conf:/etc/nginx/nginx.conf --run-command 'systemctl restart nginx'
      virtainers run --network name=front,subnet=10.50.0.0/24 --nic name=lab,ip=11
      virtainers run -- uname -a
      virtainers run --persist ./data          # its disk is there again next time
      virtainers run --detach --name web; virtainers ssh web
    """  # noqa: D301
    from pytest_virtainers.api import launched, spec_for

    detach, auto_remove, persist = given.pop("detach"), given.pop("auto_remove"), given.pop("persist")
    vnc, reach = given.pop("vnc"), given.pop("reach")
    wanted = shape.arguments(**given)
    ours = settings(reach=reach)
    with usage():
        spec = spec_for(wanted, ours, persist, OPTIONS)
    if detach and vnc:
        raise click.UsageError(f"--vnc ends with this command: virtainers vnc {spec.name} is for later")
    if detach and spec.nics:
        raise click.UsageError("--nic is not for --detach: further cards would not survive virtainers stop and start")
    if words or not detach:
        check_ssh()  # not when the VM is ready
    if detach:
        return _detach(spec, ours, persist, words, auto_remove=auto_remove)
    with launched(spec, ours, persist, progress()) as vm:
        note(f"{vm.name} ({vm.spec.image}) is at {vm.ip}; its console: {vm.access.console_command}")
        with vm.screen.vnc() if vnc else contextlib.nullcontext() as display:
            if display is not None:
                note(f"its screen: {display}, password {display.password}")
            # ssh hands one line to the guest's shell: quoted, so that the words arrive as they were given.
            return ssh(vm, shlex.join(words))


def _detach(spec: Spec, ours: Settings, persist: Path | None, words: tuple[str, ...], *, auto_remove: bool) -> int:
    from pytest_virtainers import detached
    from pytest_virtainers.api import persistent
    from pytest_virtainers.launching.build import build_launcher
    from pytest_virtainers.launching.lifetime import Lifetime

    lifetime = Lifetime(detached=True, auto_remove=auto_remove, folder=persistent(persist))
    with build_launcher(ours, progress(), lifetime=lifetime) as launcher:
        vm = detached.keep(launcher, spec)
        note(f"{vm.name} ({spec.image}) is at {vm.ip}: virtainers ssh {vm.name}")
        return ssh(vm, shlex.join(words)) if words else 0


COMMANDS = (run,)
