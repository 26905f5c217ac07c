"""One clone made ready in the background, for a test that comes later."""

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
    """Holds at most one VM that nobody has asked for yet.

    Args:
        clone: makes a VM of this spec for this test, in a thread; gives None when it cannot without harm.
    """

    def __init__(self, clone: Callable[[Spec, str], VM | None]) -> None:
        self._clone = clone
        self._spec: Spec | None = None
        self._machine: Future[VM | None] = Future()
        self._machine.set_result(None)
        self._thread: ThreadPoolExecutor | None = None
        self._taking = threading.Lock()
        self._failure: VirtainerError | None = None  # of ending a VM: no test's trouble, so it is told at the end

    def want(self, spec: Spec | None, node_id: str = "") -> None:
        """Start making such a VM unless it is there or under way; one of another spec is thrown away."""
        if spec == self._spec:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "virtainers-prefetch")
        self._machine = self._thread.submit(self._replace, self._machine, spec, node_id)
        self._spec = spec

    def claim(self, spec: Spec) -> VM | None:
        """Give the VM if it is of this spec and well, once it is ready; the next `want` makes another one."""
        if spec != self._spec:
            return None
        machine = self._take()
        if machine is not None and not machine.machine.alive:
            self._end(machine)
            return None
        return machine

    def give_back(self) -> bool:
        """Throw the VM away, once it is ready; tell whether there was one."""
        machine = self._take()
        if machine is not None:
            self._end(machine)
        return machine is not None

    def close(self) -> None:
        """Throw the VM away and end the thread; raises `VirtainerError` when a VM could not be ended."""
        try:
            self.give_back()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
        if self._failure is not None:
            raise self._failure

    def _take(self) -> VM | None:
        with self._taking:
            machine = self._machine.result()  # when this is interrupted, the VM is still ours to end
            self._machine, self._spec = Future(), None
            self._machine.set_result(None)
        return machine

    def _end(self, machine: VM) -> None:
        try:
            machine.machine.close()
        except VirtainerError as error:
            self._failure = error

    def _replace(self, former: Future[VM | None], spec: Spec | None, node_id: str) -> VM | None:
        unwanted = former.result()
        if unwanted is not None:
            self._end(unwanted)
        return None if spec is None else self._clone(spec, node_id)
