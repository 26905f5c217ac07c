"""Turn a started container into a VM that is ready, or remove it."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Protocol

from pytest_virtainers.errors import EngineError
from pytest_virtainers.ssh.endpoint import Endpoint
from pytest_virtainers.vm.vm import VM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.launching.failed import FailedVMs
    from pytest_virtainers.launching.networks import Networks
    from pytest_virtainers.ssh.keys import Keys
    from pytest_virtainers.support.progress import Progress
    from pytest_virtainers.vm.machine import Machine
    from pytest_virtainers.vm.network import Network


class MakeMachine(Protocol):
    """Makes the machine of a started container."""

    def __call__(
        self,
        spec: Spec,
        *,
        user: str,
        keys: Keys,
        container: Container,
        endpoint: Endpoint,
        network: Network,
        progress: Progress,
    ) -> Machine:
        """Return a machine to which nothing is connected yet."""


class StartingVMs:
    """The VMs of one run that are being brought up.

    Args:
        make_machine: makes the machine of a started container.
        engine: the engine that runs the VMs.
        networks: networks of the run.
        failed: keeps VMs that do not become ready.
        echo: called with the output of commands as it arrives; `None`: it is not shown.
        progress: where long steps are shown.
    """

    def __init__(
        self,
        make_machine: MakeMachine,
        engine: Engine,
        networks: Networks,
        failed: FailedVMs,
        *,
        echo: Callable[[str], object] | None,
        progress: Progress,
    ) -> None:
        self._make_machine, self._engine, self._networks, self._failed = make_machine, engine, networks, failed
        self._echo, self._progress = echo, progress
        self._vms: list[VM] = []
        self._stopped = threading.Event()

    @property
    def is_stopped(self) -> bool:
        """Whether no VM may be started at present."""
        return self._stopped.is_set()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """End the launches of other threads, and prevent further ones during the block."""
        self._stopped.set()
        try:
            for vm in list(self._vms):
                with contextlib.suppress(EngineError):
                    vm.machine.container.close()
            yield
        finally:
            self._stopped.clear()

    def get_ready(
        self,
        spec: Spec,
        user: str,
        keys: Keys,
        container: Container,
        wait: Callable[[VM], None],
        *,
        seed_iso: bytes = b"",
        ahead: bool = False,
    ) -> VM:
        """Make the VM of a started container and wait for it; when that fails, close or keep both."""
        __tracebackhide__ = True
        with contextlib.ExitStack() as undo:
            undo.callback(container.close)
            vm = self.make(spec, user, keys, container, ahead=ahead)
            vm.machine.echo, vm.machine.seed_iso = self._echo, seed_iso
            undo.callback(vm.machine.close)
            self._vms.append(vm)
            undo.callback(self._vms.remove, vm)
            if not ahead:
                self.check_wanted()
            try:
                wait(vm)
            except BaseException:  # whatever a `prepare` raises, or a plugin when a test's time is up
                if not ahead and self._failed.add(vm):
                    undo.pop_all()
                    self._vms.remove(vm)
                raise
            undo.pop_all()
            self._vms.remove(vm)
        return vm

    def make(self, spec: Spec, user: str, keys: Keys, container: Container, *, ahead: bool = False) -> VM:
        """Make the VM of a started container, and count it on its network unless it was started ahead."""
        endpoint, network = Endpoint(self._engine, container), self._networks.get(spec.first_network)
        machine = self._make_machine(
            spec,
            user=user,
            keys=keys,
            container=container,
            endpoint=endpoint,
            network=network,
            progress=self._progress,
        )
        vm = VM(machine)
        if not ahead:
            network.join(vm, container.addresses().mac)
        return vm

    def check_wanted(self) -> None:
        """Raise `CancelledError` in a thread whose launch was interrupted."""
        if self.is_stopped:
            raise CancelledError


@contextlib.contextmanager
def closing_on_failure(vm: VM) -> Iterator[None]:
    """Close a VM if the block fails."""
    try:
        yield
    except BaseException:
        vm.machine.close()
        raise
