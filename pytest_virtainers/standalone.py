"""VMs for programs that are no tests: what `vm_factory` is to a test, `launch` is to any Python program."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pytest_virtainers.errors import SpecError
from pytest_virtainers.manager import Manager
from pytest_virtainers.progress import SILENT, Progress
from pytest_virtainers.settings import environment, resolve
from pytest_virtainers.spec import check, merge, refuse_sharing
from pytest_virtainers.tenure import Tenure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_virtainers.arguments import MachineArguments
    from pytest_virtainers.handle.vm import VM
    from pytest_virtainers.settings import Settings
    from pytest_virtainers.spec import Spec


@contextlib.contextmanager
def launch(
    image: str | os.PathLike[str] | None = None,
    name: str = "vm",
    *,
    persist: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
    **arguments: Unpack[MachineArguments],
) -> Iterator[VM]:
    """Give a VM that is ready, for a block; nothing of it remains after that but what `persist` says.

    Settings come from `VIRTAINER_X` in the environment. VMs of several blocks do not reach each other.

    Args:
        image: a name of the catalogue, a path, a URL, or `docker-image://NAME`; the default is the setting's.
        name: of the VM, and of its guest.
        persist: a folder of the engine's host in which its disk stays: the next VM with it finds what this one has
            written. The VM boots, and is shut down at the end of the block.
        progress: where long steps are shown; by default nowhere.
        arguments: as the marker `virtainer` takes them, but for `scope` and `reset`.

    Raises:
        SpecError: an argument is unknown, or its value not allowed.
        EngineNotFound: no engine answers.
        VirtainerError: another of its children says why the VM did not get ready.
    """
    refuse_sharing(arguments, "launch", "here it ends with the block that has it")
    settings = resolve([environment(os.environ)])
    wanted = wish({"image": image, "name": name, **arguments}, settings, persist)
    with launched(wanted, settings, persist, progress) as vm:
        yield vm


@contextlib.contextmanager
def launched(
    wanted: Spec, settings: Settings, persist: str | os.PathLike[str] | None, progress: Progress
) -> Iterator[VM]:
    """Give the VM of `wish` for a block; otherwise as `launch`."""
    with Manager(settings, progress, tenure=Tenure(folder=persistent(persist))) as manager:
        vm = manager.launch(wanted)
        try:
            yield vm
        finally:
            if persist is not None and vm.runs:
                vm.shutdown()


def wish(
    arguments: Mapping[str, Any], settings: Settings, persist: str | os.PathLike[str] | None, where: str = "launch"
) -> Spec:
    """Say what a VM is to be; `where` is who asks for it, for the message of the `SpecError` that this raises."""
    if persist is not None and arguments.get("template"):
        raise SpecError("launch: persist says where the disk is, and a clone has its template's: leave out template")
    booted = {"template": False} if persist is not None else {}
    return merge(settings.shape, check({**arguments, **booted}, where))


def persistent(folder: str | os.PathLike[str] | None) -> str | None:
    """Make the folder in which a disk is to stay, if this is the engine's host; raises `SpecError`."""
    if folder is None:
        return None
    path = Path(folder).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"persist={path}: {error.strerror}") from None
    return str(path)
