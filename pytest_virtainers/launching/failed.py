"""VMs that are no longer used but stay until their evidence is taken."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pytest_virtainers.store.places import MOUNT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.launching.run_store import RunStore
    from pytest_virtainers.vm.vm import VM


class FailedVMs:
    """The failed VMs of one run.

    Args:
        store: where a VM that was to become a template has its disk.
        keep: whether VMs whose launch fails are kept; if not, they are closed at once.

    Attributes:
        vms: VMs whose launch failed, until they are closed.
    """

    def __init__(self, store: RunStore, *, keep: bool) -> None:
        self._store, self._keep = store, keep
        self.vms: list[VM] = []
        self._released: list[VM] = []
        self._together: Sequence[Spec] = ()

    def add(self, vm: VM) -> bool:
        """Keep a VM whose launch failed; return `False` if none are kept, and the caller has to close it."""
        if not self._keep:
            return False
        self.vms.append(vm)
        if vm.machine.folder.startswith(f"{MOUNT}/"):
            self._store.spared.add(vm.machine.folder)
        return True

    def release(self, vm: VM) -> None:
        """Keep a VM that its test no longer uses."""
        self._released.append(vm)

    @contextlib.contextmanager
    def started_together(self, specs: Sequence[Spec]) -> Iterator[None]:
        """Prevent `make_room_for` from closing failed VMs of these specs, except the one that is tried again."""
        self._together = specs
        try:
            yield
        finally:
            self._together = ()

    def make_room_for(self, spec: Spec) -> None:
        """Close failed VMs of earlier tries: the next try may need their memory."""
        for vm in [each for each in self.vms if each.spec == spec or each.spec not in self._together]:
            self.vms.remove(vm)
            vm.machine.close()

    def close(self, *, released: bool = True) -> None:
        """Close all failed VMs, and remove their unfinished templates.

        Args:
            released: also close the VMs that were released.

        Raises:
            VirtainerError: one could not be closed; the others are.
        """
        with contextlib.ExitStack() as stack:
            if self._store.spared:
                stack.callback(self._remove_folders)
            for vm in (*self.vms, *(self._released if released else ())):
                stack.callback(vm.machine.close)
            self.vms = []
            if released:
                self._released = []

    def _remove_folders(self) -> None:
        folders = sorted(self._store.spared)
        self._store.spared.clear()  # what cannot be removed now, another builder removes
        with self._store.open() as store:
            store.shell('rm -rf "$@"', *folders)
