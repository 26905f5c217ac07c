"""Commands for detached VMs, from `virtainers ls` to `virtainers vnc`."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_virtainers.cli import shape
from pytest_virtainers.cli.common import GuestCommand, answer, as_json, note, progress, settings, show, ssh, usage
from pytest_virtainers.cli.complete import files_or_vms, snapshot_tags, vm_names
from pytest_virtainers.config.arguments import ARGUMENTS
from pytest_virtainers.errors import UsageError
from pytest_virtainers.terminal import Plain, one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.vm.vm import VM

_NAME = click.argument("name", shell_complete=vm_names)
_LONGEST_PATH = 4096
_TAG = click.argument("tag", required=False, shell_complete=snapshot_tags)


@click.command
@as_json
def ls(as_json: bool) -> None:
    """List the detached VMs (run --detach).

    \b
    For example:
      virtainers ls
      virtainers ls --json | jq -r '.[] | select(.state == "running") | .name'
    """  # noqa: D301
    from pytest_virtainers import detached

    with detached.connected(settings()) as engine:
        found = detached.list_all(engine)
    rows = [{**asdict(each), "age": age(each.created)} for each in found]
    show(rows, as_json=as_json, columns=("name", "image", "state", "address", "age"))


def age(created: int) -> str:
    """Return the time since then, in the largest unit that fits."""
    seconds = max(0, int(time.time()) - created)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


@contextlib.contextmanager
def _reached(name: str) -> Iterator[VM]:
    """Attach to a running VM for OpenSSH, which makes its own connection."""
    from pytest_virtainers import detached

    with detached.attached(settings(), name, progress()) as vm:
        vm.machine.endpoint.find_way()
        yield vm


@contextlib.contextmanager
def _attached(name: str) -> Iterator[VM]:
    """Attach to a running VM, with an SSH connection."""
    from pytest_virtainers import detached

    with detached.attached(settings(), name, progress()) as vm:
        vm.machine.wait_until_resumed()
        yield vm


@click.command("ssh", cls=GuestCommand)
@_NAME
def ssh_into(name: str, words: tuple[str, ...]) -> int:
    """Open a shell in a detached VM, or pass COMMAND to its shell, like ssh.

    \b
    For example:
      virtainers ssh web
      virtainers ssh web -- 'journalctl -u nginx | tail'
    """  # noqa: D301
    with _reached(name) as vm:
        return ssh(vm, " ".join(words))


@click.command("exec", cls=GuestCommand)
@_NAME
@click.option("--sudo", is_flag=True, help="Run as root.")
@click.option("--user", help="Run as this user.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Set a variable; can be repeated.")
@click.option("--cwd", metavar="FOLDER", help="Working directory.")
@click.option("-t", "--tty", is_flag=True, help="Allocate a terminal.")
def execute(
    name: str,
    *,
    sudo: bool,
    user: str | None,
    env: tuple[str, ...],
    cwd: str | None,
    tty: bool,
    words: tuple[str, ...],
) -> int:
    """Run COMMAND in a detached VM; its words are passed without a shell.

    \b
    For example:
      virtainers exec web --sudo -- systemctl restart nginx
      virtainers exec web --env LANG=C --cwd /tmp -- sh -c 'ls | wc -l' < file
    """  # noqa: D301
    from pytest_virtainers.vm import shell

    if not words:
        raise click.UsageError("a command is missing: virtainers exec NAME -- COMMAND...")
    variables = shape.read(ARGUMENTS["env"], env)
    try:
        line = shell.line(words, sudo=sudo, user=user, env=variables, cwd=cwd)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with _reached(name) as vm:
        return ssh(vm, line, terminal=tty)


@click.command
@click.argument("source", shell_complete=files_or_vms)
@click.argument("dest", shell_complete=files_or_vms)
@click.option(
    "--special", is_flag=True, help="From a VM: include special files, links out of the tree and setuid bits."
)
def cp(source: str, dest: str, *, special: bool) -> None:
    """Copy a file or tree to or from a detached VM, with modes, links and holes.

    \b
    For example:
      virtainers cp ./dist web:/opt/app
      virtainers cp web:/var/log ./logs
    """  # noqa: D301
    from pytest_virtainers.vm.shown import shown

    there, here = split_path(source), split_path(dest)
    if (there is None) == (here is None):
        raise click.UsageError("one of SOURCE and DEST must be in a VM: NAME:PATH")
    if special and there is None:
        raise click.UsageError("--special is only for copies from a VM; copies to a VM include everything")
    if here is not None:
        with _attached(here[0]) as vm:
            print(f"{here[0]}:{shown(os.fsencode(vm.put(source, here[1])), _LONGEST_PATH)}")
    elif there is not None:
        with _attached(there[0]) as vm:
            print(vm.get(there[1], dest, special=special))


def split_path(path: str) -> tuple[str, str] | None:
    """Split NAME:PATH; return `None` for a local path, which has a slash before its first colon, or no colon."""
    name, colon, rest = path.partition(":")
    return (name, rest or ".") if colon and name and "/" not in name else None


@click.command
@_NAME
def console(name: str) -> int:
    """Open the serial console of a detached VM; Ctrl-] leaves it.

    \b
    For example:
      virtainers console web                   # works without the VM's network, too
    """  # noqa: D301
    from pytest_virtainers import detached

    with detached.connected(settings()) as engine:
        found = detached.find(engine, name)
        if not found.runs:
            raise detached.SwitchedOff(f"{name} is {found.state}: virtainers start {name} switches it on")
        terminal = ["-it"] if sys.stdin.isatty() else ["-i"]
        words = [*engine.command_line(), "exec", *terminal, found.container, "console"]
        return subprocess.run(words, check=False).returncode


@click.command
@_NAME
@click.option("-f", "--follow", is_flag=True, help="Continue until the VM ends.")
def logs(name: str, follow: bool) -> None:
    """Show the console output of a detached VM and the events of its supervisor.

    On a terminal, escape sequences and control characters are removed.

    \b
    For example:
      virtainers logs web | grep -i panic
      virtainers logs -f web
    """  # noqa: D301
    from pytest_virtainers import detached

    with detached.connected(settings()) as engine:
        shown: Callable[[bytes], bytes] = bytes
        if sys.stdout.isatty():  # programs get the unchanged output
            plain = Plain()
            shown = lambda piece: printable(plain.feed(piece)).encode()  # noqa: E731
        for piece in detached.output(engine, name, follow=follow):
            sys.stdout.buffer.write(shown(piece))
            sys.stdout.buffer.flush()


@click.command
@_NAME
@as_json
def inspect(name: str, as_json: bool) -> None:
    """Show the properties of a detached VM.

    \b
    For example:
      virtainers inspect web --json | jq -r .address
    """  # noqa: D301
    import json

    from pytest_virtainers import detached

    with detached.connected(settings()) as engine:
        facts = detached.inspect(engine, name)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    spec, guest = facts.pop("spec"), facts.pop("guest")
    for key, value in {**facts, **guest, **spec}.items():
        answer(one_line(f"{key}: {value}"))


@click.command
@click.argument("names", nargs=-1, required=True, shell_complete=vm_names)
def stop(names: tuple[str, ...]) -> None:
    """Shut detached VMs down; after a minute, their power is cut (run --env SHUTDOWN_TIMEOUT=…).

    \b
    For example:
      virtainers stop web db
      virtainers run --detach --name slow --env SHUTDOWN_TIMEOUT=300; virtainers stop slow
    """  # noqa: D301
    from pytest_virtainers import detached

    with detached.connected(settings()) as engine:
        for name in names:
            with progress().step(f"shutting down {name}"):
                shut_down = detached.stop(engine, name)
            if not shut_down:
                note(f"{name} did not shut down within its SHUTDOWN_TIMEOUT: its power was cut")


@click.command
@click.argument("names", nargs=-1, required=True, shell_complete=vm_names)
def start(names: tuple[str, ...]) -> None:
    """Start detached VMs that are switched off, and wait until they are ready.

    \b
    For example:
      virtainers stop web; virtainers start web
    """  # noqa: D301
    from pytest_virtainers import detached

    for name in names:
        detached.start(settings(), name, progress())


@click.command
@click.argument("names", nargs=-1, required=True, shell_complete=vm_names)
@click.option("-f", "--force", is_flag=True, help="Remove running VMs, too.")
def rm(names: tuple[str, ...], force: bool) -> None:
    """Remove detached VMs and their disks, except disks of --persist.

    \b
    For example:
      virtainers rm --force web db
    """  # noqa: D301
    from pytest_virtainers import detached

    with detached.connected(settings()) as engine:
        for name in names:
            detached.remove(engine, name, force=force)
        engine.sweep()  # removes their network after the last one


@click.command
@click.option("-l", "--list", "listed", is_flag=True, help="Only list the tags, the newest last.")
@click.option("-d", "--delete", is_flag=True, help="Delete TAG and free its space.")
@_NAME
@_TAG
@as_json
def snapshot(name: str, tag: str | None, *, listed: bool, delete: bool, as_json: bool) -> None:
    """Save the memory and disk of a VM as TAG (by default s1, s2, …), and print the tag.

    \b
    For example:
      virtainers snapshot web clean; virtainers restore web clean; virtainers snapshot -d web clean
    """  # noqa: D301
    from pytest_virtainers import detached
    from pytest_virtainers.vm.snapshots import free_name

    if (listed and (delete or tag)) or (delete and not tag):
        raise click.UsageError("--delete requires a tag, and --list does not accept one")
    if as_json and not listed:
        raise click.UsageError("--json requires --list")
    if listed or delete:
        with detached.attached(settings(), name, progress()) as vm:  # works for a VM that no longer answers
            if tag:
                vm.delete_snapshot(tag)
            elif as_json:
                show([{"tag": each} for each in vm.snapshots()], as_json=True)
            else:
                for each in vm.snapshots():
                    answer(one_line(each))
        return
    with _attached(name) as vm, usage():
        print(vm.snapshot(tag or free_name(vm.snapshots())).name)


@click.command
@_NAME
@_TAG
def restore(name: str, tag: str | None) -> None:
    """Restore the memory and disk of a VM from the snapshot TAG, by default the newest.

    \b
    For example:
      virtainers snapshot web clean; virtainers exec web --sudo -- rm -rf /etc/nginx
      virtainers restore web clean
    """  # noqa: D301
    from pytest_virtainers import detached

    with detached.attached(settings(), name, progress()) as vm:  # works for a VM that no longer answers
        there = [] if tag else vm.snapshots()
        if not tag and not there:
            raise UsageError(f"{name} has no snapshot. To take one: virtainers snapshot {name}")
        vm.restore(tag or there[-1])


@click.command
@_NAME
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def commit(name: str, file: Path) -> None:
    """Write the disk of a VM that is switched off to FILE, as a guest image.

    \b
    For example:
      virtainers stop web; virtainers commit web web.qcow2; virtainers run ./web.qcow2 --user debian
    """  # noqa: D301
    from pytest_virtainers import detached
    from pytest_virtainers.launching.build import build_launcher

    if not file.absolute().parent.is_dir():
        raise UsageError(f"{file}: there is no such folder")
    with build_launcher(settings(), progress()) as launcher, progress().step(f"writing the disk of {name} to {file}"):
        facts = detached.commit(launcher, name, file)
    print(file)
    options = " ".join(f"--{option} {facts[option]}" for option in ("user", "arch", "firmware"))
    note(f"to start a VM from it: virtainers run {shlex.quote(str(file.absolute()))} {options}")


@click.command
@_NAME
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def screenshot(name: str, file: Path) -> None:
    """Write a screenshot of a VM to FILE, as PNG.

    \b
    For example:
      virtainers screenshot web screen.png
    """  # noqa: D301
    from pytest_virtainers import detached

    with detached.attached(settings(), name, progress()) as vm:
        print(vm.screen.screenshot(file))


@click.command
@_NAME
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port at 127.0.0.1; 0 chooses a free one.")
@click.option("--web", is_flag=True, help="Serve a page with noVNC for web browsers.")
@click.option("--open", "open_it", is_flag=True, help="Open it with the desktop's viewer for vnc://, or the browser.")
def vnc(name: str, port: int, web: bool, open_it: bool) -> None:
    """Show the screen of a VM to VNC viewers on this machine, with keyboard and mouse, until Ctrl-C.

    \b
    For example:
      virtainers vnc web --port 5901           # prints vnc://127.0.0.1:5901 and the password
      vncviewer 127.0.0.1:5901
      virtainers vnc web --web --open          # in a browser (pip install 'pytest-virtainers[novnc]')
    """  # noqa: D301
    from pytest_virtainers import detached

    with detached.attached(settings(), name, progress()) as vm, contextlib.ExitStack() as stack:
        if web:
            url = stack.enter_context(vm.screen.novnc(port=port))
            print(url, flush=True)
        else:
            display = stack.enter_context(vm.screen.vnc(port=port))
            url = str(display)
            print(f"{url}, password {display.password}", flush=True)
        if open_it:
            click.launch(url.partition("&password=")[0])  # others could read it on a command line; noVNC asks for it
        while not vm.machine.exit_reason:  # a VM with a kernel panic has a screen, too
            time.sleep(1)
        note(f"{name} has ended: {vm.machine.exit_reason}")


COMMANDS = (
    ls, ssh_into, execute, cp, console, logs, inspect, stop, start, rm, snapshot, restore, commit, screenshot, vnc,
)  # fmt: skip
