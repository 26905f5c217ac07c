"""VMs without pytest: `launch` is to any Python program what `vm_factory` is to a test."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import check, merge, refuse_sharing
from pytest_virtainers.errors import SpecError
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.lifetime import Lifetime
from pytest_virtainers.support.forks import disown_in_child
from pytest_virtainers.support.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_virtainers.config.argument_types import VMArguments
    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.launching.launcher import Launcher
    from pytest_virtainers.vm.vm import VM


@contextlib.contextmanager
def launch(
    image: str | os.PathLike[str] | None = None,
    name: str = "vm",
    *,
    persist: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
    **arguments: Unpack[VMArguments],
) -> Iterator[VM]:
    """Return a context manager whose value is a VM that is ready; the VM ends with the block.

    Settings come from `VIRTAINER_X` in the environment. VMs of several blocks do not reach each other. The next block
    reuses the connection to the engine and what is known of the guest image; they last as long as the process.

    Args:
        image: a name of the catalogue, a path, a URL, or `docker-image://NAME`; the default is the setting.
        name: the name of the VM, and the hostname of its guest.
        persist: a folder of the engine's host that keeps the disk: the next VM with this folder finds what this one
            has written. The VM boots, and is shut down at the end of the block.
        progress: where long steps are shown; by default nowhere.
        arguments: those of the marker `virtainer`, without `scope` and `reset`.

    Raises:
        SpecError: an argument is unknown, or its value is not allowed.
        EngineNotFound: no engine answers.
        VirtainerError: the VM did not become ready; the class says why.
    """
    refuse_sharing(arguments, "launch", "here it ends with the block that has it")
    settings = resolve([environment(os.environ)])
    wanted = spec_for(check({"image": image, "name": name, **arguments}, "launch"), settings, persist)
    if persist is not None:
        with launched(wanted, settings, persist, progress) as vm:
            yield vm
        return
    with _launcher(settings, progress) as launcher:
        yield launcher.launch(wanted)


class IdleLauncher:
    """The launcher of the last block, kept for the next one, which need not look up again what it knows.

    It is reused only with the same environment, which determines engine and store.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[object, Launcher]] = []
        disown_in_child(self)

    def disown(self) -> None:
        """Forget the launcher in a forked child; another thread of the parent may have held the lock."""
        self._lock, self._kept = threading.Lock(), []

    def take(self, purpose: object) -> Launcher | None:
        """Return the launcher if it was kept for this purpose; close one for another purpose."""
        with self._lock:
            kept, self._kept = self._kept, []
        if kept and kept[0][0] == purpose:
            return kept[0][1]
        for _, launcher in kept:
            launcher.close()
        return None

    def keep(self, purpose: object, launcher: Launcher) -> None:
        """Keep a launcher without VMs until the process ends; if there is one already, close it."""
        with self._lock:
            if not self._kept:
                self._kept = [(purpose, launcher)]
                return
        launcher.close()

    def close(self) -> None:
        """Close the launcher that is kept."""
        self.take(None)


idle_launcher = IdleLauncher()
atexit.register(idle_launcher.close)


@contextlib.contextmanager
def _launcher(settings: Settings, progress: Progress) -> Iterator[Launcher]:
    """Return a launcher for one VM, which ends with the block; after a failure, the launcher is closed, too."""
    purpose = ({**os.environ}, progress)
    with contextlib.ExitStack() as failed:
        launcher = idle_launcher.take(purpose) or build_launcher(settings, progress)
        failed.callback(launcher.close)
        yield launcher
        if not launcher.is_ours:
            return
        launcher.reset()
        failed.pop_all()
    idle_launcher.keep(purpose, launcher)


@contextlib.contextmanager
def launched(
    wanted: Spec, settings: Settings, persist: str | os.PathLike[str] | None, progress: Progress
) -> Iterator[VM]:
    """Return a context launcher for a VM with this spec; `persist` and `progress` are those of `launch`."""
    with build_launcher(settings, progress, lifetime=Lifetime(folder=persistent(persist))) as launcher:
        vm = launcher.launch(wanted)
        try:
            yield vm
        finally:
            if persist is not None and vm.machine.runs:
                vm.shutdown()


def spec_for(
    checked: Mapping[str, Any], settings: Settings, persist: str | os.PathLike[str] | None, where: str = "launch"
) -> Spec:
    """Return the spec of a VM with these checked arguments; raises `SpecError`, whose message starts with `where`."""
    if persist is None:
        return merge(settings.shape, checked)
    if checked.get("template"):
        raise SpecError(f"{where}: persist keeps a disk, but a clone has its template's: leave out template")
    return merge(settings.shape, checked, {"template": False})


def persistent(folder: str | os.PathLike[str] | None) -> str | None:
    """Create the folder that keeps a disk, if this is the engine's host, and return its path; raises `SpecError`."""
    if folder is None:
        return None
    path = Path(folder).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"persist={path}: {error.strerror}") from None
    return str(path)
