"""Collect the evidence of a failing test in a folder, for people and for `virtainers resume`.

Each piece is collected on its own, within a time limit. The manifest names the pieces that are missing or incomplete,
with the reason.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pytest_virtainers.errors import RootCommandTimeout, VirtainerError
from pytest_virtainers.evidence import cores, seals
from pytest_virtainers.evidence.manifest_file import FORMAT, KEY, MANIFEST, OVERLAY, REMEMBERED, SEED, STATE
from pytest_virtainers.support.runtime_modules import protocol
from pytest_virtainers.vm.limited import Limited, TooMuch
from pytest_virtainers.vm.supervisor_events import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pytest_virtainers.engine.base import Container
    from pytest_virtainers.vm.vm import VM

_SSH_SECONDS = 6.0  # for everything that needs SSH, with KVM; ten times as long without
_LEAST_SECONDS = 0.1
_MAX_LOG_BYTES = 64 * 1024 * 1024
# The command that copies the disk waits up to 30 s for QEMU, then prints a line for each further piece. With KVM;
# ten times as long without.
_IDLE_SECONDS = 40.0


@dataclass
class _Folder:
    """A folder of evidence, and the pieces that are missing in it."""

    path: Path
    missing: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def piece(self, name: str) -> Iterator[Path]:
        """Return the path of one piece; an exception in the block is recorded, and does not affect other pieces."""
        path = self.path / name
        try:
            yield path
        except Exception as error:  # noqa: BLE001  (evidence of a failure must not become the failure)
            with contextlib.suppress(OSError):  # remove an incomplete file; files in a folder are complete
                path.rmdir() if path.is_dir() else path.unlink()
            self.missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]


def collect(
    vm: VM,
    folder: Path,
    *,
    memory: bool,
    about: dict[str, Any],
    rescue: Callable[[VM], AbstractContextManager[Container]] | None = None,
) -> None:
    """Collect evidence of a VM in an empty folder; the VM continues afterwards.

    Args:
        vm: the VM, in any state.
        folder: an existing folder, which becomes private.
        memory: collect the memory, too.
        about: more fields of the manifest.
        rescue: context manager for a container with the disk of a VM whose own container no longer exists.
    """
    into = _Folder(folder)
    folder.chmod(0o700)
    with into.piece("console.log") as path:
        path.write_text(vm.console.text, errors="replace")
    with into.piece("supervisor.log") as path:
        path.write_bytes(readable(bytes(vm.machine.container.stderr)))
    with into.piece("screenshot.png") as path:
        vm.screen.screenshot(path)
    with into.piece("commands.log") as path:
        path.write_text(vm.log.text, errors="replace")
    _ask_guest(vm, into)
    if vm.machine.seed_iso:  # its copy in the container may no longer exist
        with into.piece(SEED) as path:
            path.touch(mode=0o600)
            path.write_bytes(vm.machine.seed_iso)
    facts = _keep_disk(vm, into, memory=memory, rescue=rescue)
    with into.piece(KEY) as path:
        path.touch(mode=0o600)
        path.write_text(vm.machine.keys.login.private)
    manifest = {
        "format": FORMAT,
        "name": vm.name,
        "user": vm.user,
        "host_key": vm.machine.keys.host.public,
        "spec": {
            **{name: getattr(vm.spec, name) for name in REMEMBERED},
            "arch": vm.machine.arch,
            "firmware": vm.machine.firmware,
            "internet": vm.spec.internet and vm.network.spec.mode != "isolated",
        },
        "machine": facts,
        "versions": {"pytest-virtainers": version("pytest-virtainers"), "python": platform.python_version()},
        "missing": into.missing,
        **about,
    }
    (folder / MANIFEST).write_text(json.dumps(_sealed(manifest, into), indent=2) + "\n")


def _sealed(manifest: dict[str, Any], into: _Folder) -> dict[str, Any]:
    """Add the seal by which `virtainers resume` trusts the manifest and the memory."""
    try:
        files = (OVERLAY, STATE) if manifest["machine"].get("memory") else ()
        return seals.seal({**manifest, "sha256": {name: seals.digest(into.path / name) for name in files}})
    except (VirtainerError, OSError) as error:
        into.missing[seals.FIELD] = f"{type(error).__name__}: {error}".splitlines()[0]
        return manifest


def _ask_guest(vm: VM, into: _Folder) -> None:
    """Collect the logs and core dumps of the guest over SSH."""
    commands = {
        "journal.txt": "journalctl --no-pager -b -o short-precise",
        "dmesg.txt": "dmesg --time-format iso 2>/dev/null || dmesg",
    }
    if not vm.machine.alive:
        into.missing |= dict.fromkeys(commands, "the VM could not be reached over SSH")
        return
    end = time.monotonic() + vm.scaled(_SSH_SECONDS)

    def seconds_left() -> float:
        return max(_LEAST_SECONDS, end - time.monotonic())

    for name, command in commands.items():
        _log(vm, into, name, command, seconds_left())
    with into.piece("cores") as path:
        into.missing |= cores.collect(vm.machine.root_shell, path, seconds_left)


def _log(vm: VM, into: _Folder, name: str, command: str, seconds: float) -> None:
    """Write the output of a root command; of a command that fails, the output so far, with the reason."""
    output, reason = Limited(_MAX_LOG_BYTES), ""
    with into.piece(name) as path:
        try:
            code, errors = vm.machine.root_shell(["sh", "-c", command], stdin=None, stdout=output, timeout=seconds)
            if code != 0:
                reason = errors.strip() or f"exit code {code}"
        except TooMuch:
            reason = f"it is longer than {_MAX_LOG_BYTES // 2**20} MiB"
        except RootCommandTimeout:
            reason = f"not finished after {seconds:.0f} s"
        except VirtainerError as error:
            reason = str(error).partition("\n")[0]
        if reason and not output.data:
            raise VirtainerError(reason)
        path.write_bytes(output.data)
        if reason:
            into.missing[name] = f"its end: {reason}"


def _keep_disk(
    vm: VM,
    into: _Folder,
    *,
    memory: bool,
    rescue: Callable[[VM], AbstractContextManager[Container]] | None,
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    with into.piece(OVERLAY), _open(vm, rescue) as container:
        options = ["--memory"] if memory else []
        patience, there = vm.scaled(_IDLE_SECONDS), f"{vm.machine.folder}/{protocol.EVIDENCE}"
        code, output = container.run(["evidence", *options], patience=patience)
        if code != 0 and options:  # the disk alone is better than nothing
            into.missing[STATE] = output.decode(errors="replace").strip()
            code, output = container.run(["evidence"], patience=patience)
        try:
            if code != 0:
                raise VirtainerError(output.decode(errors="replace").strip())
            facts = json.loads(output.decode().strip().splitlines()[-1])
            if memory and not facts["memory"]:
                into.missing.setdefault(STATE, "QEMU has ended, or does not answer")
            names = {protocol.EVIDENCE_DISK: OVERLAY, **({protocol.EVIDENCE_STATE: STATE} if facts["memory"] else {})}
            if not vm.machine.seed_iso:
                names[protocol.EVIDENCE_SEED] = SEED
            for name, here in names.items():
                with into.piece(here) as path:
                    container.fetch(f"{there}/{name}", path)
        finally:
            _clear(container, there, patience)
    if facts.get("memory") and STATE in into.missing:
        facts["memory"] = False
    return facts


def _clear(container: Container, folder: str, patience: float) -> None:
    """Remove the copies of disk and memory, which use space in a VM that other tests may share."""
    with contextlib.suppress(VirtainerError):  # they are removed with the container
        container.run(["rm", "-rf", folder], patience=patience)


def _open(
    vm: VM, rescue: Callable[[VM], AbstractContextManager[Container]] | None
) -> AbstractContextManager[Container]:
    """Open the VM's container, or another one with its disk."""
    if not vm.machine.container.ended:
        return contextlib.nullcontext(vm.machine.container)
    if rescue is None:
        raise VirtainerError("its container no longer exists")
    return rescue(vm)
