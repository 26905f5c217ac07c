"""VMs for programs that are no tests: what `vm_factory` is to a test, `launch` is to any Python program."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from pytest_virtainers.errors import SpecError
from pytest_virtainers.manager import Manager
from pytest_virtainers.progress import SILENT, Progress
from pytest_virtainers.settings import environment, resolve
from pytest_virtainers.spec import check, merge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_virtainers.handle.vm import VM

_OF_TESTS = {"scope", "reset"}


@contextlib.contextmanager
def launch(
    image: str | os.PathLike[str] | None = None, name: str = "vm", *, progress: Progress = SILENT, **arguments: Any
) -> Iterator[VM]:
    """Give a VM that is ready, for a block; nothing of it remains after that.

    Settings come from `VIRTAINER_X` in the environment. VMs of several blocks do not reach each other.

    Args:
        image: a name of the catalogue, a path or a URL; the default is the setting's.
        name: of the VM, and of its guest.
        progress: where long steps are shown; by default nowhere.
        arguments: as the marker `virtainer` takes them, but for `scope` and `reset`.

    Raises:
        SpecError: an argument is unknown, or its value not allowed.
        EngineNotFound: no engine answers.
        VirtainerError: another of its children says why the VM did not get ready.
    """
    if senseless := sorted(_OF_TESTS & arguments.keys()):
        raise SpecError(f"launch: {senseless[0]} says how tests share a VM; here it ends with the block that has it")
    settings = resolve([environment(os.environ)])
    wanted = merge(settings.shape, check({"image": image, "name": name, **arguments}, "launch"))
    with Manager(settings, progress) as manager:
        yield manager.launch(wanted)
