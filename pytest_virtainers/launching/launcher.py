"""Launch the VMs of one run: use a prefetched one, clone or boot; try again; close all at the end."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_virtainers.errors import EngineError, GuestStalled, QEMUCrashed, StoreError, VMGone
from pytest_virtainers.launching import together
from pytest_virtainers.launching.starting_vms import closing_on_failure
from pytest_virtainers.store.access import Removed
from pytest_virtainers.support.timings import Record, phase, recording

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Engine
    from pytest_virtainers.guests.images import GuestImage
    from pytest_virtainers.launching.bring_up import BringUp, SavedVM
    from pytest_virtainers.launching.clones import Clones
    from pytest_virtainers.launching.containers import Containers
    from pytest_virtainers.launching.damage import Damage
    from pytest_virtainers.launching.disks import Disks
    from pytest_virtainers.launching.failed import FailedVMs
    from pytest_virtainers.launching.guest_images import GuestImages
    from pytest_virtainers.launching.memory_budget import Budget
    from pytest_virtainers.launching.networks import Networks
    from pytest_virtainers.launching.prefetch import Prefetcher
    from pytest_virtainers.launching.run_store import RunStore
    from pytest_virtainers.launching.runtime_image import RuntimeImage
    from pytest_virtainers.launching.starting_vms import StartingVMs
    from pytest_virtainers.launching.templates import Templates
    from pytest_virtainers.support.forks import Owner
    from pytest_virtainers.support.progress import Progress
    from pytest_virtainers.vm.vm import VM

T = TypeVar("T")


class Launcher:
    """All VMs of one run on one engine. `build_launcher` returns one with its real parts.

    Attributes:
        engine: the engine that runs the VMs.
        run_id: id of the run, in the labels of all that it starts.
        runtime_image: image of their containers.
        store: the store of guest images and templates.
        guests: guest images of the run.
        templates: templates of the run.
        networks: networks of the run.
        containers: starts containers.
        bring_up: starts single VMs.
        failed: VMs whose evidence is still to be taken.
        damage: what was found damaged in the store after VMs were started from it.
        disks: opens the disks of VMs that have ended.
        durations: where the seconds of each launch went.
    """

    def __init__(
        self,
        engine: Engine,
        run_id: str,
        *,
        runtime_image: RuntimeImage,
        store: RunStore,
        guests: GuestImages,
        templates: Templates,
        networks: Networks,
        memory: Budget,
        containers: Containers,
        starting_vms: StartingVMs,
        bring_up: BringUp,
        clones: Clones,
        prefetcher: Prefetcher,
        failed: FailedVMs,
        damage: Damage,
        disks: Disks,
        durations: list[Record],
        owner: Owner,
        closing: contextlib.ExitStack,
        progress: Progress,
    ) -> None:
        self.engine, self.run_id, self.runtime_image, self.store = engine, run_id, runtime_image, store
        self.guests, self.templates, self.networks, self.containers = guests, templates, networks, containers
        self.bring_up, self.failed, self.damage, self.disks = bring_up, failed, damage, disks
        self.durations = durations
        self._memory, self._starting_vms, self._clones, self._prefetcher = memory, starting_vms, clones, prefetcher
        self._owner, self._closing, self._progress = owner, closing, progress
        self._vms: list[VM] = []

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_ours(self) -> bool:
        """Whether this process made it; a forked child inherits it, and cannot use it."""
        return self._owner.is_here

    def launch(self, spec: Spec, node_id: str = "") -> VM:
        """Start a VM and wait until it is ready; when that fails, nothing of it remains.

        Args:
            spec: spec of the VM.
            node_id: id of the test, for labels.

        Raises:
            VirtainerError: one of its children says what went wrong. A `StoreError` may be about earlier VMs: it is
                raised once when a file of the store turns out to be damaged from which they were started.
        """
        __tracebackhide__ = True
        self._owner.check()
        if found := self.look_for_damage():
            raise StoreError("\n".join(found))
        record = Record("clone" if spec.template else "boot")
        with recording(record):
            vm = self._take_or_make(spec, node_id, record)
        self._vms.append(vm)
        self.failed.make_room_for(spec)
        vm.machine.first_command = record
        self.durations.append(record)
        return vm

    def launch_all(self, specs: Sequence[Spec], node_id: str = "") -> list[VM]:
        """Start VMs together and wait until all are ready; raises as `launch` does, for the first that failed.

        When one fails, the others are waited for, and count as failed, too, so that there is evidence of all.
        """
        __tracebackhide__ = True
        self._owner.check()
        if len(specs) < 2:  # noqa: PLR2004  (one needs no threads)
            return [self.launch(spec, node_id) for spec in specs]
        for spec in specs:  # long steps are shown, and clones of one template should not wait for each other
            self.warm(spec, node_id)
        return together.start(
            specs,
            partial(self.launch, node_id=node_id),
            self._fail,
            starting_vms=self._starting_vms,
            failed=self.failed,
            progress=self._progress,
        )

    def warm(self, spec: Spec, node_id: str = "") -> None:
        """Make the images and the template that a VM needs, if they are missing; raises as `launch` does."""
        __tracebackhide__ = True
        self._memory.check(spec)
        guest = self.guests.of(spec)
        if spec.template:
            self._again_after_crash(spec, partial(self._clones.template, spec, guest, node_id))

    def prefetch(self, spec: Spec | None, node_id: str = "") -> None:
        """Clone in the background for the next `launch` of this spec, if there is a template and memory.

        `None`, or another spec, closes a clone that was not used. While several VMs are up, nothing is prefetched:
        they may look each other up by name, and should not find a VM that no test has requested. Nor is a VM whose
        network or address belongs to others, who may need it until then. A forked child prefetches nothing.
        """
        if not self.is_ours:
            return
        if len(self._vms) > 1 or (
            spec is not None and (spec.has_fixed_address or spec.first_network.source is not None)
        ):
            spec = None
        if spec is None:
            self._prefetcher.want(None)
        else:
            self._prefetcher.want(spec, partial(self._clones.ahead, spec, node_id))

    def look_for_damage(self) -> list[str]:
        """Return messages about damage that was found since the last call; no further VM is started from it."""
        found = self.damage.look()
        if found:
            self._prefetcher.give_back()
        return found

    def _take_or_make(self, spec: Spec, node_id: str, record: Record) -> VM:
        __tracebackhide__ = True
        with phase("take prefetched"):
            vm = self._prefetcher.claim(spec)
        if vm is not None:
            with closing_on_failure(vm):
                self.bring_up.connect(vm)
            record.kind = "prefetched"
            return vm
        self._memory.check(spec)
        return self._again_after_crash(spec, partial(self._clone_or_boot, spec, node_id))

    def _again_after_crash(self, spec: Spec, make: Callable[[], T]) -> T:
        """Call `make`, and once more when a kernel hangs or QEMU crashes while it boots."""
        __tracebackhide__ = True
        try:
            return make()
        except (GuestStalled, QEMUCrashed) as error:  # seen under emulation, once in some hundred boots
            whose = f"of {spec.name} ({spec.image})"
            what = f"QEMU {whose} crashed" if isinstance(error, QEMUCrashed) else f"the kernel {whose} hung"
            self._progress.note(f"{what} while it booted: booting again, once")
            self.failed.make_room_for(spec)
            return make()

    def _clone_or_boot(self, spec: Spec, node_id: str) -> VM:
        """Launch from the cached guest image, or from the one in the store if the cached one was removed."""
        __tracebackhide__ = True

        def launch(guest: GuestImage) -> VM:
            __tracebackhide__ = True
            make = self._clones.clone if spec.template else self.bring_up.boot
            return make(spec, guest, node_id)

        guest = self.guests.of(spec)
        try:
            return launch(guest)
        except (Removed, VMGone) as error:
            if isinstance(error, QEMUCrashed) or self.guests.is_stored(guest):
                raise
            self._progress.note(f"guest image {spec.image} was removed from the store, or replaced: looking again")
            self.failed.make_room_for(spec)
            return launch(self.guests.of(spec))

    def start_saved(self, saved: SavedVM) -> VM:
        """Start a VM from its own disk, and do not wait for the guest.

        Raises:
            EngineError: the engine failed.
            BudgetError: there is no memory for it.
        """
        vm = self.bring_up.start_saved(saved)
        self._vms.append(vm)
        return vm

    def facts(self, vm: VM) -> dict[str, Any]:
        """Return what the evidence of a VM records about where it ran."""
        guest = self.guests.known(vm.spec)
        return {
            "guest": {"key": guest.key, "digest": guest.digest} if guest else {},
            "runtime_image": self.runtime_image.reference(),
            "engine": str(self.engine),
        }

    def _fail(self, vm: VM) -> None:
        """Count a VM that is ready among the failed ones."""
        self._vms.remove(vm)
        if not self.failed.add(vm):
            vm.machine.close()

    def release(self, vm: VM) -> None:
        """Note that a VM is not used any more; `failed.close` closes it, so that its evidence can be taken before.

        It leaves networks of others at once: their owner may be about to remove them.
        """
        if self.is_ours and vm in self._vms:
            self._vms.remove(vm)
            self.failed.release(vm)
            for network in vm.networks:
                if network.spec.source is not None:
                    with contextlib.suppress(EngineError):
                        vm.machine.container.disconnect(network.engine_name)

    def discard(self, vm: VM) -> None:
        """Close one VM now; a forked child leaves it to its parent."""
        if self.is_ours and vm in self._vms:
            self._vms.remove(vm)
            vm.machine.close()

    def reset(self) -> None:
        """Close all VMs, and keep what others can use: the engine, what is known of the store, the default network.

        Raises:
            VirtainerError: something could not be closed.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.networks.reset)
            self._close_vms(stack)
            stack.callback(self._prefetcher.give_back)
            stack.callback(self._note_damage)
        self.guests.reset()
        self.durations.clear()

    def close(self) -> None:
        """Close all VMs, remove the networks and leave the engine; a forked child leaves all to its parent."""
        if not self.is_ours:
            return
        with self._closing.pop_all() as stack:  # one failure must not keep the rest from being removed
            self._close_vms(stack)
            stack.callback(self._prefetcher.close)
            stack.callback(self._note_damage)
            stack.callback(self.damage.stop)

    def _close_vms(self, stack: contextlib.ExitStack) -> None:
        for vm in self._vms:
            stack.callback(vm.machine.close)
        stack.callback(self.failed.close)
        self._vms = []

    def _note_damage(self) -> None:
        for message in self.look_for_damage():
            self._progress.note(message)
