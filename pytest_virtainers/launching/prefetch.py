"""Clone the VM of a later test in the background."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from pytest_virtainers.errors import VirtainerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.vm.vm import VM


class Prefetcher:
    """Holds at most one VM that no test has requested yet."""

    def __init__(self) -> None:
        self._spec: Spec | None = None
        self._vm: Future[VM | None] = Future()
        self._vm.set_result(None)
        self._thread: ThreadPoolExecutor | None = None
        self._taking = threading.Lock()
        self._failure: VirtainerError | None = None  # to close a VM; raised at the end, as no test is to blame

    def want(self, spec: Spec | None, clone: Callable[[], VM | None] = lambda: None) -> None:
        """Start making a VM of a spec, unless it is ready or under way; close one of another spec.

        Args:
            spec: spec of the VM; `None`: no test needs one.
            clone: makes it, in a thread; returns `None` if it cannot.
        """
        if spec == self._spec:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "virtainers-prefetch")
        self._vm = self._thread.submit(self._replace, self._vm, clone)
        self._spec = spec

    def claim(self, spec: Spec) -> VM | None:
        """Return the VM, once it is ready, if it is of this spec and still runs; `want` makes the next one."""
        if spec != self._spec:
            return None
        vm = self._take()
        if vm is not None and not vm.machine.alive:
            self._end(vm)
            return None
        return vm

    def give_back(self) -> bool:
        """Close the VM, once it is ready; return whether there was one."""
        vm = self._take()
        if vm is not None:
            self._end(vm)
        return vm is not None

    def close(self) -> None:
        """Close the VM and end the thread; raises `VirtainerError` if any VM could not be closed."""
        try:
            self.give_back()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
        if self._failure is not None:
            raise self._failure

    def _take(self) -> VM | None:
        with self._taking:
            vm = self._vm.result()  # if this is interrupted, the VM is still here to be closed
            self._vm, self._spec = Future(), None
            self._vm.set_result(None)
        return vm

    def _end(self, vm: VM) -> None:
        try:
            vm.machine.close()
        except VirtainerError as error:
            self._failure = error

    def _replace(self, former: Future[VM | None], clone: Callable[[], VM | None]) -> VM | None:
        unwanted = former.result()
        if unwanted is not None:
            self._end(unwanted)
        return clone()
