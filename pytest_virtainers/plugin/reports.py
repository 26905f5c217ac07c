"""Failing tests: collect evidence of their VMs, report it, and hold the VMs for inspection."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import pytest

from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.plugin import session
from pytest_virtainers.support.files import open_private
from pytest_virtainers.terminal import one_line, printable

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_virtainers.vm.vm import VM


@dataclass(frozen=True)
class _Start:
    """The sizes of a VM's log and console when a test began to use it; earlier content belongs to other tests."""

    commands: int = 0
    console: int = 0


USED_KEY: pytest.StashKey[dict[VM, _Start]] = pytest.StashKey()
"""The VMs of a test."""
SESSION_VM_KEY: pytest.StashKey[VM] = pytest.StashKey()
"""The VM of `session_vm`; a test uses it by naming the fixture."""
_KEPT_KEY: pytest.StashKey[dict[VM, Path]] = pytest.StashKey()
_FOLDER_KEY: pytest.StashKey[Path] = pytest.StashKey()

# Errors that must not hide why a test failed; pytest-timeout may raise `pytest.fail.Exception` at any time.
_TROUBLE = (Exception, pytest.fail.Exception)
_LONGEST_SLUG = 100
# The slug of such an ID is unique; other slugs get a hash.
_PLAIN_ID = re.compile(r"(?:\w+/)*\w+\.py(?:::\w+)*", re.ASCII)
_CONSOLE_LINES = 12
_PROPERTY = "virtainer_artifacts"


def begin(item: pytest.Item) -> None:
    """Begin a try of a test: forget the VMs and evidence of its previous try."""
    item.stash[USED_KEY], item.stash[_KEPT_KEY] = {}, {}
    if _FOLDER_KEY in item.stash:
        del item.stash[_FOLDER_KEY]
    if _uses_session_vm(item):
        used(item, item.config.stash[SESSION_VM_KEY], shared=True)
    launcher = session.present(item.config)
    if launcher is not None:
        with contextlib.suppress(VirtainerError):  # the next run sweeps what stays
            launcher.failed.close()


def used(item: pytest.Item, machine: VM, *, shared: bool = False) -> VM:
    """Record that a test uses a VM, and return it; other tests may have used a `shared` VM before."""
    start = _Start(len(machine.log.entries), machine.console.size) if shared else _Start()
    item.stash.setdefault(USED_KEY, {}).setdefault(machine, start)
    return machine


def machines(item: pytest.Item) -> list[VM]:
    """Return the VMs of a test."""
    if _uses_session_vm(item):  # created after `begin`
        used(item, item.config.stash[SESSION_VM_KEY])
    return [*item.stash.setdefault(USED_KEY, {})]


def _uses_session_vm(item: pytest.Item) -> bool:
    return "session_vm" in getattr(item, "fixturenames", ()) and SESSION_VM_KEY in item.config.stash


def report(item: pytest.Item, result: pytest.TestReport) -> None:
    """Collect evidence of a failed phase of a test, add it to the report, and close failed VMs.

    After a failure, the VMs stay for inspection until the next report, or the next test.
    """
    settings = session.settings(item.config)
    launcher = session.present(item.config)
    if launcher is None:
        return
    over = result.when == "teardown"
    if (result.failed and settings.keep != "never") or (over and settings.keep == "always"):
        for machine in [*machines(item), *launcher.failed.vms]:
            _collect(item, result, machine)
    if (result.failed and settings.capture != "never") or (over and settings.capture == "always"):
        _write_captures(item, result)
    if result.failed:
        for machine in [*machines(item), *launcher.failed.vms]:
            _name_cause(item, result, machine)
    if over and not result.failed:
        try:
            launcher.failed.close()
        except _TROUBLE as error:  # the next run sweeps what stays
            _show(result, "virtainer", f"while closing VMs: {error}")


def _show(result: pytest.TestReport, title: str, text: str) -> None:
    """Add a section to a test's report, escaped for the terminal, as a guest may have written its content."""
    result.sections.append((one_line(title), printable(text)))


def _collect(item: pytest.Item, result: pytest.TestReport, machine: VM) -> None:
    """Collect the evidence of one VM, once in a test."""
    kept = item.stash.setdefault(_KEPT_KEY, {})
    settings = session.settings(item.config)
    launcher = session.launcher(item.config)
    is_new = machine not in kept
    try:
        if is_new:
            folder = kept[machine] = new_folder(item, machine)
            from pytest_virtainers.evidence import collect

            about = {"test": item.nodeid, "phase": result.when, "outcome": result.outcome, **launcher.facts(machine)}
            collect.collect(machine, folder, memory=settings.keep_memory, about=about, rescue=launcher.disks.open)
            item.user_properties.append((_PROPERTY, str(folder)))
            result.user_properties.append((_PROPERTY, str(folder)))
        if result.failed:
            _show(result, f"virtainer {machine.name}", _summary(item, machine, kept[machine]))
        if is_new:
            _add_to_html(item, result, machine, kept[machine])
    except _TROUBLE as error:
        text = f"the evidence of {machine.name} could not be collected: {type(error).__name__}: {error}"
        _show(result, f"virtainer {machine.name}", text)


def _summary(item: pytest.Item, machine: VM, folder: Path) -> str:
    """Return a summary of the evidence in a few lines."""
    from pytest_virtainers.evidence.manifest_file import KEY, MANIFEST, OVERLAY

    shown = _short(folder, item)
    missing = json.loads((folder / MANIFEST).read_text())["missing"]
    ended = [each for each in machine.log.entries[_start(item, machine).commands :] if each.seconds is not None]
    failing = next((each for each in reversed(ended) if each.outcome not in {"exit 0", "done"}), None)
    lines = [f"evidence: {shown}", *(f"missing: {name}: {reason}" for name, reason in missing.items())]
    if not missing.keys() & {OVERLAY, KEY}:
        lines.append(f"to resume it: virtainers resume {shown}")
    if failing is not None:
        lines.append(f"last failed command: {failing}")
    lines += _kernel_messages(item, machine)
    return "\n".join([*lines, "last lines of the console:", machine.console.tail(_CONSOLE_LINES)])


def _start(item: pytest.Item, machine: VM) -> _Start:
    return item.stash.setdefault(USED_KEY, {}).get(machine, _Start())


def _kernel_messages(item: pytest.Item, machine: VM) -> list[str]:
    """Return messages of the guest's kernel that may explain a failure: out-of-memory kills and a panic.

    A panic counts even if it was before the test, as the VM has not been running since.
    """
    panic = machine.console.panic()
    killed = machine.console.killed_for_memory(_start(item, machine).console)
    return [*([panic] if panic else []), *killed]


def _name_cause(item: pytest.Item, result: pytest.TestReport, machine: VM) -> None:
    """Add messages of the guest's kernel to the failure, unless its text already has them."""
    messages = (printable(line) for line in _kernel_messages(item, machine))
    new = [line for line in messages if line not in result.longreprtext]
    if not new:
        return
    title = f"the kernel of {machine.name}"
    failure: Any = result.longrepr
    if hasattr(failure, "addsection"):
        failure.addsection(title, "\n".join(new))
    else:
        result.longrepr = "\n".join([result.longreprtext, f"{title}:", *new])


def _short(folder: Path, item: pytest.Item) -> str:
    try:
        return str(folder.relative_to(item.config.invocation_params.dir))
    except ValueError:
        return str(folder)


def _write_captures(item: pytest.Item, result: pytest.TestReport) -> None:
    """Write captures of the networks of a test's VMs since its start."""
    used_ones = {*machines(item), *session.launcher(item.config).failed.vms}
    for network in session.launcher(item.config).networks.all():
        if network.recorder is None or not used_ones.intersection(network.vms):
            continue
        try:
            path = _folder(item) / f"{network.label}.pcap"
            try:
                with replace_private(path) as file:
                    network.recorder.write(file, since=item.stash[session.BEGAN_KEY])
            except BaseException:
                path.unlink(missing_ok=True)  # remove an incomplete file
                raise
        except _TROUBLE as error:
            text = f"the capture could not be written: {type(error).__name__}: {error}"
        else:
            text = f"capture: {_short(path, item)}"
        _show(result, f"virtainer network {network.label}", text)


def replace_private(path: Path) -> IO[bytes]:
    """Create a private file, and open it for writing; a file of an earlier phase is replaced."""
    path.unlink(missing_ok=True)
    return open_private(path, "xb")


def new_folder(item: pytest.Item, machine: VM) -> Path:
    """Create the folder for one VM of this try of the test."""
    folder = _folder(item)
    number, name = 1, machine.name
    while (folder / name).exists():
        number += 1
        name = f"{machine.name}-{number}"
    (folder / name).mkdir(mode=0o700)
    return folder / name


def _folder(item: pytest.Item) -> Path:
    """Return the folder for this try of the test, created if necessary."""
    if _FOLDER_KEY not in item.stash:
        settings = session.settings(item.config)
        root = item.config.rootpath / settings.artifacts
        try:
            root.mkdir(parents=True)
        except FileExistsError:  # perhaps created by another worker
            pass
        else:
            (root / ".gitignore").write_text("*\n")
        item.stash[_FOLDER_KEY] = next_try(root, slug(item.nodeid), settings.retention)
    return item.stash[_FOLDER_KEY]


def next_try(root: Path, name: str, retention: int | None) -> Path:
    """Create the folder of the next try of a test, and remove the oldest folders beyond `retention`."""
    number = 1 + max(_tries(root, name), default=0)
    while True:
        folder = root / (name if number == 1 else f"{name}.{number}")
        try:
            folder.mkdir(mode=0o700)
            break
        except FileExistsError:  # another run of the same test
            number += 1
    if retention is not None:
        tries = _tries(root, name)
        for old in sorted(tries)[:-retention]:
            shutil.rmtree(tries[old], ignore_errors=True)
    return folder


def _tries(root: Path, name: str) -> dict[int, Path]:
    """Return the folders of this test's tries by number."""
    found = {}
    for each in root.glob(f"{name}*"):
        match = re.fullmatch(rf"{re.escape(name)}(?:\.(\d+))?", each.name)
        if match:
            found[int(match[1] or 1)] = each
    return found


def slug(node_id: str) -> str:
    """Return a unique file name for a test's ID; a name that is too long or ambiguous gets a hash."""
    name = re.sub(r"[^A-Za-z0-9_]+", "-", node_id).strip("-")
    if len(name) > _LONGEST_SLUG or not _PLAIN_ID.fullmatch(node_id) or name.split("-").count("py") > 1:
        name = f"{name[:_LONGEST_SLUG]}-{hashlib.sha256(node_id.encode()).hexdigest()[:8]}"
    return name


def _add_to_html(item: pytest.Item, result: pytest.TestReport, machine: VM, folder: Path) -> None:
    """Add the evidence to the report of pytest-html, if that is used."""
    if not item.config.pluginmanager.hasplugin("html"):
        return
    from pytest_html import extras

    shown: Any = result
    shown.extras = [*getattr(result, "extras", []), extras.url(folder.as_uri(), name=f"{machine.name}: evidence")]
    picture = folder / "screenshot.png"
    if picture.exists():
        content = base64.b64encode(picture.read_bytes()).decode()
        shown.extras.append(extras.png(content, name=f"{machine.name}: screen"))


def hold(item: pytest.Item) -> None:
    """Show how to access a failing test's VMs; with the setting `hold`, wait until the user presses Enter."""
    settings, launcher = session.settings(item.config), session.present(item.config)
    in_debugger = session.in_debugger(item.config)
    if launcher is None or not (settings.hold or in_debugger):
        return
    up = [each for each in (*machines(item), *launcher.failed.vms) if not each.machine.container.ended]
    if not up:
        return
    capture: Any = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend(in_=True)
    try:
        out = sys.stdout
        for machine in up:
            out.write(f"\nvirtainers: {machine.name} of {item.nodeid} is up\n")
            for name, way in (("ssh:    ", "ssh_command"), ("console:", "console_command")):
                try:
                    shown = getattr(machine.access, way)
                except (OSError, VirtainerError) as error:  # a full disk, or a VM that has just ended
                    shown = f"({error})"
                out.write(f"  {name} {shown}\n")
        if settings.hold and not in_debugger:
            if sys.stdin is not None and sys.stdin.isatty():
                out.write("virtainers: press Enter to continue: ")
                out.flush()
                sys.stdin.readline()
            else:
                out.write("virtainers: there is no terminal to press Enter at; not waiting\n")
        out.flush()
    finally:
        if capture is not None:
            capture.resume()
