"""What a failing test leaves behind of a machine, in a folder: for people, and for `virtainers resume`.

Each piece is had by itself and within a time limit; what cannot be had, or not to its end, is named in the manifest,
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

from pytest_virtainers.errors import TransferError, VirtainerError
from pytest_virtainers.evidence import seals
from pytest_virtainers.evidence.manifest_file import FORMAT, KEY, MANIFEST, OVERLAY, REMEMBERED, SEED, STATE
from pytest_virtainers.launching import cores
from pytest_virtainers.vm.limited import Limited, TooMuch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pytest_virtainers.engine.base import Container
    from pytest_virtainers.vm.vm import VM

_SSH_SECONDS = 6.0  # for all that needs SSH, with KVM; ten times as many without
_MOMENT_SECONDS = 0.1
_MAX_LOG_BYTES = 64 * 1024 * 1024
# The command that copies the disk says whenever it has copied more. Before that, it gives QEMU 30 s to answer. With
# KVM; ten times as long without.
_STILL_SECONDS = 40.0


@dataclass
class _Folder:
    """Where it goes, and what is missing there."""

    path: Path
    missing: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def piece(self, name: str) -> Iterator[Path]:
        """Give the path of one piece; what goes wrong in the block is noted and does not keep the others from it."""
        path = self.path / name
        try:
            yield path
        except Exception as error:  # noqa: BLE001  (evidence of a failure must not become the failure)
            with contextlib.suppress(OSError):  # a part of a file is not wanted; those in a folder are whole
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
    """Fill `folder`, which must be there and empty; the machine goes on afterwards.

    Args:
        vm: whatever has become of it.
        folder: becomes private.
        memory: keep the memory, too.
        about: more facts for the manifest.
        rescue: opens a container (a context manager) with the disk of a machine whose own container is gone.
    """
    into = _Folder(folder)
    folder.chmod(0o700)
    with into.piece("console.log") as path:
        path.write_text(vm.console.text, errors="replace")
    with into.piece("supervisor.log") as path:
        path.write_bytes(bytes(vm.container.stderr))
    with into.piece("screenshot.png") as path:
        vm.screenshot(path)
    with into.piece("commands.log") as path:
        path.write_text(vm.log.text, errors="replace")
    _ask_guest(vm, into)
    if vm.seed_iso:  # also of a container that is gone, with what was put into it
        with into.piece(SEED) as path:
            path.touch(mode=0o600)
            path.write_bytes(vm.seed_iso)
    facts = _keep_disk(vm, into, memory=memory, rescue=rescue)
    with into.piece(KEY) as path:
        path.touch(mode=0o600)
        path.write_text(vm.keys.login.private)
    manifest = {
        "format": FORMAT,
        "name": vm.name,
        "user": vm.user,
        "host_key": vm.keys.host.public,
        "spec": {
            **{name: getattr(vm.spec, name) for name in REMEMBERED},
            "arch": vm.arch,
            "firmware": vm.firmware,
            "internet": vm.spec.internet and vm.network.spec.mode != "isolated",
        },
        "machine": facts,
        "versions": {"pytest-virtainers": version("pytest-virtainers"), "python": platform.python_version()},
        "missing": into.missing,
        **about,
    }
    (folder / MANIFEST).write_text(json.dumps(_sealed(manifest, into), indent=2) + "\n")


def _sealed(manifest: dict[str, Any], into: _Folder) -> dict[str, Any]:
    """Add what shows to `virtainers resume` that this user's run wrote it, and its memory, on this machine."""
    try:
        files = (OVERLAY, STATE) if manifest["machine"].get("memory") else ()
        return seals.seal({**manifest, "sha256": {name: seals.digest(into.path / name) for name in files}})
    except (VirtainerError, OSError) as error:
        into.missing[seals.FIELD] = f"{type(error).__name__}: {error}".splitlines()[0]
        return manifest


def _ask_guest(vm: VM, into: _Folder) -> None:
    """Have what needs SSH: of a machine that does not answer any more, only the reason."""
    commands = {
        "journal.txt": "journalctl --no-pager -b -o short-precise",
        "dmesg.txt": "dmesg --time-format iso 2>/dev/null || dmesg",
    }
    if not vm.alive:
        into.missing |= dict.fromkeys(commands, "the machine could not be reached over SSH")
        return
    end = time.monotonic() + vm.scaled(_SSH_SECONDS)

    def seconds_left() -> float:
        return max(_MOMENT_SECONDS, end - time.monotonic())

    for name, command in commands.items():
        _log(vm, into, name, command, seconds_left())
    with into.piece("cores") as path:
        into.missing |= cores.collect(vm.root_shell, path, seconds_left)


def _log(vm: VM, into: _Folder, name: str, command: str, seconds: float) -> None:
    """Keep what a command says as root; where its end does not come, what was said until then, with the reason."""
    said, why = Limited(_MAX_LOG_BYTES), ""
    with into.piece(name) as path:
        try:
            code, trouble = vm.root_shell(["sh", "-c", command], stdin=None, stdout=said, timeout=seconds)
            if code != 0:
                why = trouble.strip() or f"exit code {code}"
        except TooMuch:
            why = f"it is longer than {_MAX_LOG_BYTES // 2**20} MiB"
        except TransferError:
            why = f"not done after {seconds:.0f} s"
        except VirtainerError as error:
            why = str(error).partition("\n")[0]
        if why and not said.data:
            raise VirtainerError(why)
        path.write_bytes(said.data)
        if why:
            into.missing[name] = f"its end: {why}"


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
        patience, there = vm.scaled(_STILL_SECONDS), f"{vm.folder}/evidence"
        code, said = container.run(["evidence", *options], patience=patience)
        if code != 0 and options:  # the disk alone is better than nothing
            into.missing[STATE] = said.decode(errors="replace").strip()
            code, said = container.run(["evidence"], patience=patience)
        try:
            if code != 0:
                raise VirtainerError(said.decode(errors="replace").strip())
            facts = json.loads(said.decode().strip().splitlines()[-1])
            if memory and not facts["memory"]:
                into.missing.setdefault(STATE, "QEMU has ended, or does not answer")
            names = {"overlay.qcow2": OVERLAY, **({"state": STATE} if facts["memory"] else {})}
            if not vm.seed_iso:
                names["seed.iso"] = SEED
            for name, here in names.items():
                with into.piece(here) as path:
                    container.fetch(f"{there}/{name}", path)
        finally:
            _clear(container, there, patience)
    if facts.get("memory") and STATE in into.missing:
        facts["memory"] = False
    return facts


def _clear(container: Container, folder: str, patience: float) -> None:
    """Remove copies of disk and memory, which need room for as long as other tests share the machine."""
    with contextlib.suppress(VirtainerError):  # then they go with it
        container.run(["rm", "-rf", folder], patience=patience)


def _open(
    vm: VM, rescue: Callable[[VM], AbstractContextManager[Container]] | None
) -> AbstractContextManager[Container]:
    """Give the machine's container, or one that has its disk."""
    if not vm.container.ended:
        return contextlib.nullcontext(vm.container)
    if rescue is None:
        raise VirtainerError("its container is gone")
    return rescue(vm)
