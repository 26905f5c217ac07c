"""Launch VMs for one run, and end all that the run has started."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_virtainers.config.architecture import check_firmware
from pytest_virtainers.engine import runtime_image, scratch
from pytest_virtainers.engine.detect import find
from pytest_virtainers.engine.ownership import DETACHED, LABEL, is_kept
from pytest_virtainers.engine.plan import DISK_FOLDER, Bind, Plan
from pytest_virtainers.engine.reaper import Reaper
from pytest_virtainers.engine.tar import Link
from pytest_virtainers.errors import (
    BadTemplate,
    BootError,
    EngineError,
    GuestStalled,
    ImageError,
    QEMUCrashed,
    SpecError,
    SSHError,
    StoreError,
    Unclonable,
    VirtainerError,
    VMGone,
)
from pytest_virtainers.guests import flat_disk, images
from pytest_virtainers.guests.catalogue import catalogue
from pytest_virtainers.launching import cloud_init
from pytest_virtainers.launching.container_plan import Starter
from pytest_virtainers.launching.integrity import Watch
from pytest_virtainers.launching.layering import NotLayered
from pytest_virtainers.launching.layering import plain as plain_shape
from pytest_virtainers.launching.lifetime import DISPOSABLE, Tenure
from pytest_virtainers.launching.memory_budget import Budget
from pytest_virtainers.launching.networks import Networks
from pytest_virtainers.launching.once import Once
from pytest_virtainers.launching.prefetch import Prefetcher
from pytest_virtainers.launching.templates import Template, Templates
from pytest_virtainers.ssh.endpoint import Endpoint
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.store.access import Access, Removed
from pytest_virtainers.store.eviction import USES, make_room
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.store.manifests import of_store
from pytest_virtainers.store.places import MOUNT
from pytest_virtainers.store.volume import workshop
from pytest_virtainers.support.forks import Owner
from pytest_virtainers.support.progress import LAUNCHING
from pytest_virtainers.support.timings import Record, phase, recording
from pytest_virtainers.vm import provision_limit
from pytest_virtainers.vm.provisioning import provision
from pytest_virtainers.vm.vm import VM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.guests.images import Guest
    from pytest_virtainers.launching.integrity import Checked
    from pytest_virtainers.store.volume import Workshop
    from pytest_virtainers.support.progress import Progress

T = TypeVar("T")

# One clone that fails may have met a busy machine, two a bad template; then there is a new one.
_TRIES = 3


class Manager:
    """All VMs of one run on one engine.

    Args:
        settings: of the run.
        progress: where long steps are shown.
        worker: which of several processes of a test run this is, for labels.
        test_run: an id that these processes share; empty: there is only this one.
        keeps_lost: somebody takes the evidence of machines whose launch has failed.
        tenure: how long its VMs stay.

    Attributes:
        durations: where the seconds of each launch went.
        damage: what was found damaged in the store after VMs were started from it; `look_for_damage` adds to it.
        echo: where the output of commands is shown as it comes; None: nowhere.
        once: what this run makes once for all its VMs.
        lost: machines whose launch has failed, with `keeps_lost`, until `bury`.
        networks: those of the run.
        starter: of their containers.

    Raises:
        EngineNotFound: no engine answers.
    """

    def __init__(
        self,
        settings: Settings,
        progress: Progress,
        worker: str = "main",
        *,
        test_run: str = "",
        keeps_lost: bool = False,
        tenure: Tenure = DISPOSABLE,
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._run_id = secrets.token_hex(4)
        self._owner = Owner("this launcher", "Use a thread, or pytest_virtainers.launch in the child.")
        self._vms: list[VM] = []
        self._retired: list[VM] = []
        self._starting: list[VM] = []
        self._together: Sequence[Spec] = ()
        self._given_up = threading.Event()
        self._keeps_lost = keeps_lost
        self.lost: list[VM] = []
        self._scratch: set[str] = set()  # folders of the store that go with those
        self.echo: Callable[[str], object] | None = None
        self._guests: dict[tuple[str, str], Guest] = {}  # by image and architecture, as asked for
        self._refused: dict[tuple[str, str], str] = {}  # those that could not be had, and why
        self._runtime_image: str | None = None
        self._no_runtime_image = ""  # why it could not be built
        self.once = Once(test_run)
        self._templates: Templates | None = None
        self._holds = SharedLocks()
        self._watch = Watch(self._store_to_read)
        self._tenure = tenure
        self._spoiled: dict[str, str] = {}  # places of templates that no VM may be cloned from, and why
        self.damage: list[str] = []
        self._prefetcher = Prefetcher(self._clone_ahead)
        self.durations: list[Record] = []
        self.engine: Engine = find(settings.engine)
        try:
            scratch.sweep()
            swept = self.engine.sweep()
            self._reaper = Reaper(self.engine, self._run_id)
        except BaseException:
            self.engine.close()
            raise
        self.networks = Networks(
            self.engine,
            self._run_id,
            recorded=settings.capture != "never",
            reached=settings.reach,
            note=progress.note,
            lasting=tenure.detached,
        )
        self._access = Access(self.engine, settings.store, self.store)
        self._manifests = of_store(self.engine, settings.store)
        self._budget = Budget(self.engine, settings.max_ram, self._run_id, progress)
        self.starter = Starter(
            self.engine,
            settings,
            self._run_id,
            worker,
            tenure,
            runtime_image=self.runtime_image,
            networks=self.networks,
            access=self._access,
            memory=self._budget,
            give_back=self._prefetcher.give_back,
        )
        if swept:
            progress.note(f"removed what an earlier run left behind: {', '.join(swept)}")

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_ours(self) -> bool:
        """Whether this process made it; a forked child has it, too, and cannot use it."""
        return self._owner.is_here

    @property
    def store_location(self) -> str:
        """Where its store is: a volume's name, or a directory."""
        return self._settings.store

    def runtime_image(self) -> str:
        """Return the runtime image's reference, built if need be; raises `ImageError`.

        If it cannot be had, it is not tried again in this run.
        """
        if self._no_runtime_image:
            raise ImageError(self._no_runtime_image)
        if self._runtime_image is None:
            try:
                with self.once.without_time_limit():
                    self._runtime_image = runtime_image.ensure(self.engine, self._progress)
            except ImageError as error:
                self._no_runtime_image = str(error)
                raise
        return self._runtime_image

    def has_runtime_image(self) -> bool:
        """Tell whether the runtime image is there already; raises `EngineError`."""
        return runtime_image.present(self.engine)

    @contextlib.contextmanager
    def store(self) -> Iterator[Workshop]:
        """Open the store for a block, and keep it within its limit; raises `ImageError` or `StoreError`."""
        self._owner.check()
        with workshop(
            self.engine, self._settings.store, self.runtime_image(), self._run_id, remembered=self._manifests
        ) as shop:
            shop.spared = self._scratch
            yield shop
            if shop.made:
                make_room(shop, self._settings.store_limit, self._progress)

    @contextlib.contextmanager
    def _store_to_read(self) -> Iterator[Workshop]:
        run_id = f"{self._run_id}-verify"
        with workshop(self.engine, self._settings.store, self.runtime_image(), run_id, writable=False) as shop:
            yield shop

    def guest(self, image: str, arch: str = "auto") -> Guest:
        """Give the guest image for machines of `arch`, brought into the store if need be.

        Raises `ImageError` or `StoreError`.

        One that could not be had is not tried again in this run: each of its tests would wait for it.
        """
        wanted = image, arch
        if wanted not in self._guests:
            if wanted in self._refused:
                raise ImageError(self._refused[wanted])
            images.find(image, arch)  # a wrong name should not have to wait for a container
            with self.once.without_time_limit(), self.store() as shop:
                try:
                    guest = images.ensure(image, arch, shop, self._progress)
                except ImageError as error:
                    self._refused[wanted] = str(error)
                    raise
                self._holds.add(guest.place)
            self._guests[wanted] = guest
        return self._guests[wanted]

    def guest_of(self, spec: Spec) -> Guest:
        """Give the guest image of a VM; raises as `guest`, and `SpecError` before anything is built in vain."""
        kind = images.architecture(spec.image, spec.arch)
        try:
            check_firmware(kind, spec.firmware)
        except ValueError as error:
            raise SpecError(f"{spec.name} ({spec.image}): {error}") from None
        if spec.accel == "kvm" and kind not in {"auto", self.engine.arch}:
            raise SpecError(
                f"{spec.name}: accel='kvm' runs guests of the host's own architecture, {self.engine.arch}; "
                f"{spec.image} is for {kind}, and emulated with accel='auto'"
            )
        return self.guest(spec.image, spec.arch)

    def templates(self) -> Templates:
        """Give the templates of this run; raises `ImageError` when the runtime image cannot be had."""
        if self._templates is None:
            self._templates = Templates(
                self.store,
                holds=self._holds,
                runtime_id=runtime_image.image_id(self.engine, self.runtime_image()),
                progress=self._progress,
                once=self.once,
            )
        return self._templates

    def launch(self, spec: Spec, node_id: str = "") -> VM:
        """Start a VM and wait until it is ready; when that fails nothing of it remains.

        Args:
            spec: what it should be.
            node_id: of the test that asked, for labels.

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
        self._bury_lost(spec)  # on the way
        vm.first_command = record
        self.durations.append(record)
        return vm

    def look_for_damage(self) -> list[str]:
        """Return what the check in the background has found since the last call; no further VM is started from it."""
        found = [self._condemn(each) for each in self._watch.damage()]
        if found:
            self._prefetcher.give_back()
            self.damage += found
        return found

    def _condemn(self, damaged: Checked) -> str:
        """Let no further VM be started from a damaged file; return what a user must know."""
        said = (
            f"{damaged}. VMs of this run were started from it, and what their tests have seen may be wrong: run them "
            "again, and check the disk and the memory of the engine's host. "
        )
        if names := [wanted for wanted, guest in self._guests.items() if guest.place == damaged.place]:
            said += "To have it made or fetched again: virtainers store verify --remove"
            for wanted in names:
                self._refused[wanted] = said
                del self._guests[wanted]
            return said
        template = self.templates().known(damaged.place)
        for layer in self.templates().made_from(damaged.place):
            if self._is_kept_on(layer):
                self._spoiled[layer.place] = "its template was copied from a damaged one, and a VM that stays has it"
            else:
                self.templates().forget(layer, condemned=True)
        if template is not None and self._is_kept_on(template):
            self._spoiled[template.place] = "its template is damaged, and a VM that stays has its disk on it"
            return f"{said}It stays as long as the VM that has its disk on it; others are booted"
        if template is not None:
            self.templates().forget(template, condemned=True)
        return f"{said}It was removed and will be made again"

    def launch_all(self, specs: Sequence[Spec], node_id: str = "") -> list[VM]:
        """Start VMs together and wait until all are ready; raises as `launch` does, for the first that failed.

        When one fails, the others are waited for, and are lost with it, so that there is evidence of all.
        """
        __tracebackhide__ = True
        self._owner.check()
        if len(specs) < 2:  # noqa: PLR2004  (one needs no threads)
            return [self.launch(spec, node_id) for spec in specs]
        for spec in specs:  # what takes long is shown, and clones of one template should not wait for each other
            self.warm(spec, node_id)
        self._together = specs
        title = f"starting {', '.join(spec.name for spec in specs)}"
        with self._progress.step(title), ThreadPoolExecutor(len(specs), LAUNCHING) as threads:
            launches = [threads.submit(self.launch, spec, node_id) for spec in specs]
            try:
                wait(launches)
            except BaseException:
                self._give_up(launches)
                raise
            finally:
                self._together = ()
        failures = [error for error in (launch.exception() for launch in launches) if error is not None]
        if not failures:
            return [launch.result() for launch in launches]
        self._lose(launches)
        for error in failures[1:]:
            failures[0].add_note(f"And: {error}")
        raise failures[0]

    def warm(self, spec: Spec, node_id: str = "") -> None:
        """Make the images and the template that a VM needs, if they are not there; raises as `launch` does."""
        __tracebackhide__ = True
        self._budget.check(spec)
        guest = self.guest_of(spec)
        if spec.template:
            self._again_after_crash(spec, partial(self._template, spec, guest, node_id))

    def _give_up(self, launches: Sequence[Future[VM]]) -> None:
        """End launches that nobody waits for any more."""
        self._given_up.set()
        for vm in list(self._starting):
            with contextlib.suppress(EngineError):
                vm.container.close()
        wait(launches)
        self._given_up.clear()
        self._lose(launches)

    def _lose(self, launches: Sequence[Future[VM]]) -> None:
        """Lose the VMs that are ready, with those that are not."""
        for vm in [launch.result() for launch in launches if launch.exception() is None]:
            self._vms.remove(vm)
            if self._keeps_lost:
                self.lost.append(vm)
            else:
                vm.close()

    def _check_wanted(self) -> None:
        """Raise in a thread of `launch_all` that was interrupted, so that it does not begin or try again."""
        if self._given_up.is_set():
            raise CancelledError

    def _take_or_make(self, spec: Spec, node_id: str, record: Record) -> VM:
        __tracebackhide__ = True
        with phase("take prefetched"):
            vm = self._prefetcher.claim(spec)
        if vm is not None:
            with _closing_on_failure(vm):
                vm.network.join(vm, vm.container.addresses().mac)
                self._plug_cards(vm)  # not before: their networks have other VMs, which may count who is there
            record.kind = "prefetched"
            return vm
        self._budget.check(spec)
        return self._again_after_crash(spec, partial(self._clone_or_boot, spec, node_id))

    def _again_after_crash(self, spec: Spec, make: Callable[[], T]) -> T:
        """Call `make`, and once more when a kernel hangs or QEMU crashes while it boots."""
        __tracebackhide__ = True
        try:
            return make()
        except (GuestStalled, QEMUCrashed) as error:  # seen under emulation, once in some hundred boots
            whose = f"of {spec.name} ({spec.image})"
            what = f"QEMU {whose} crashed" if isinstance(error, QEMUCrashed) else f"the kernel {whose} hung"
            self._progress.note(f"{what} while it booted: booting anew, once")
            self._bury_lost(spec)
            return make()

    def prefetch(self, spec: Spec | None, node_id: str = "") -> None:
        """Make a clone ready in the background for the next `launch` of this spec, if there is a template and room.

        None, or another spec, throws away what was made ready and not used. While several VMs are up, nothing is made
        ready: they may look each other up by name, and should not find one that nobody has asked for yet. Nor is one
        whose network or address is somebody else's, who may want it back meanwhile. A forked child has none made.
        """
        if not self.is_ours:
            return
        if len(self._vms) > 1 or (
            spec is not None and (spec.has_fixed_address or spec.first_network.source is not None)
        ):
            spec = None
        self._prefetcher.want(spec, node_id)

    def retire(self, vm: VM) -> None:
        """Note that nobody uses a VM any more; it ends with `bury`, so that its evidence can be taken before.

        It leaves networks that are not ours at once: their owner may be about to remove them.
        """
        if self.is_ours and vm in self._vms:
            self._vms.remove(vm)
            self._retired.append(vm)
            for network in vm.networks:
                if network.spec.source is not None:
                    with contextlib.suppress(EngineError):
                        vm.container.disconnect(network.engine_name)

    def _bury_lost(self, spec: Spec) -> None:
        """End what a launch has lost on its way, but not what others have that run beside it."""
        for vm in [each for each in self.lost if each.spec == spec or each.spec not in self._together]:
            self.lost.remove(vm)
            vm.close()

    def bury(self, *, retired: bool = True) -> None:
        """End all lost VMs, with the templates that they were to become, and all `retired` ones."""
        if not self.is_ours:
            return
        with contextlib.ExitStack() as stack:
            if self._scratch:
                stack.callback(self._clear_scratch)
            for vm in (*self.lost, *(self._retired if retired else ())):
                stack.callback(vm.close)
            self.lost = []
            if retired:
                self._retired = []

    def _clear_scratch(self) -> None:
        folders = sorted(self._scratch)
        self._scratch.clear()  # what cannot be removed now, another builder removes
        with self.store() as shop:
            shop.shell('rm -rf "$@"', *folders)

    def facts(self, vm: VM) -> dict[str, Any]:
        """Give what the evidence of a VM says of where it ran."""
        guest = self._guests.get((vm.spec.image, vm.spec.arch))
        return {
            "guest": {"key": guest.key, "digest": guest.digest} if guest else {},
            "runtime_image": self.runtime_image(),
            "engine": str(self.engine),
        }

    def start_kept(
        self,
        spec: Spec,
        *,
        guest: Guest,
        user: str,
        keys: Keys,
        environment: Mapping[str, str],
        disk: Callable[[], Iterator[bytes]],
        seed_iso: bytes,
    ) -> VM:
        """Start a VM from a disk that was kept, and do not wait for it; raises `EngineError` and its like.

        Args:
            spec: what it should be.
            guest: the image on which the disk was made.
            user: to log in as.
            keys: of which the login's private and the host's public half are known.
            environment: of the container, beside what `spec` gives.
            disk: gives what the container's `/mounted` has in it, as a tar stream, from its beginning each time.
            seed_iso: its cloud-init seed; empty: none.
        """
        files: dict[str, dict[str, bytes | Link]] = {"/": {"image": Link(guest.disk)}}
        if seed_iso:
            files["/tmp"] = {"cloud_init.iso": seed_iso}  # noqa: S108  (the image's contract)
        environment = {**guest.machine(spec.firmware), **environment}
        container = self.starter.start(spec, (guest.place,), environment, "", files=files, mounted=disk)
        with contextlib.ExitStack() as undo:
            undo.callback(container.close)
            vm = self._handle(spec, user, keys, container)
            undo.pop_all()
        self._vms.append(vm)
        return vm

    @contextlib.contextmanager
    def rescue(self, vm: VM) -> Iterator[Container]:
        """Open a container with the disk of a VM whose own container is gone; raises `EngineError`."""
        disk = () if vm.volume is None else (Bind(DISK_FOLDER, vm.volume, writable=True),)
        plan = Plan(
            name=f"virtainers-{self._run_id}-rescue-{secrets.token_hex(2)}",
            kind="helper",
            image=self.runtime_image(),
            entrypoint=("cat",),
            environment=vm.container.environment,  # it says where disk and seed are
            binds=(*vm.container.binds, *disk),
            offline=True,
        )
        container = self.engine.create(plan, self._run_id)
        try:
            container.start()
            yield container
        finally:
            container.close()

    def flatten(self, overlay: Iterator[bytes], name: str, places: Sequence[str], target: Path) -> None:
        """Write a disk as one flat qcow2 file of this machine.

        Args:
            overlay: a tar stream with the disk's uppermost layer, `local_image.qcow2`.
            name: by which messages call that.
            places: in the store, of the layers below, the lowest last.
            target: the file.

        Raises:
            StoreError: the disk cannot be made.
            EngineError: the engine failed.
        """
        flat_disk.write(
            self.engine,
            self._access,
            runtime_image=self.runtime_image(),
            run_id=self._run_id,
            overlay=overlay,
            name=name,
            places=places,
            target=target,
        )

    def discard(self, vm: VM) -> None:
        """End one VM now; a forked child leaves it to its parent."""
        if self.is_ours and vm in self._vms:
            self._vms.remove(vm)
            vm.close()

    def reset(self) -> None:
        """End all VMs, and keep what others can use: the engine, what was learnt of the store, the default network.

        What is no name of the catalogue is looked at again: the file behind a path may change.

        Raises:
            VirtainerError: something could not be ended.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.networks.reset)
            for vm in self._vms:
                stack.callback(vm.close)
            stack.callback(self.bury)
            stack.callback(self._prefetcher.give_back)
            stack.callback(self._note_damage)
            self._vms = []
        self._guests = {wanted: guest for wanted, guest in self._guests.items() if wanted[0] in catalogue()}
        self._refused = {}
        self.durations.clear()

    def close(self) -> None:
        """End all VMs, remove the networks and leave the engine; a forked child leaves all to its parent."""
        if not self.is_ours:
            return
        with contextlib.ExitStack() as stack:  # one failure must not keep the rest from being removed
            stack.callback(self.engine.close)
            stack.callback(self._reaper.close)
            stack.callback(self._watch.close)
            stack.callback(self.networks.close)
            stack.callback(self._holds.close)
            for vm in self._vms:
                stack.callback(vm.close)
            stack.callback(self.bury)
            stack.callback(self._prefetcher.close)
            stack.callback(self._note_damage)
            stack.callback(self._watch.stop)
            self._vms = []

    def _note_damage(self) -> None:
        for said in self.look_for_damage():
            self._progress.note(said)

    def _clone_ahead(self, spec: Spec, node_id: str) -> VM | None:
        """Clone in the prefetcher's thread. Trouble is left for the test to meet, which can tell of it."""
        guest = self._guests.get((spec.image, spec.arch))
        try:
            template = self.templates().find(spec, guest) if spec.template and guest else None
            if guest is None or template is None or template.refusal or template.place in self._spoiled:
                return None
            self.durations.append(record := Record("prefetch"))
            with recording(record):
                return self._start_clone(spec, guest, template, node_id, ahead=True)
        except VirtainerError:
            return None

    def _clone_or_boot(self, spec: Spec, node_id: str) -> VM:
        """Launch from the guest image that is remembered, or from what the store has when that is gone."""
        __tracebackhide__ = True

        def launch(guest: Guest) -> VM:
            __tracebackhide__ = True
            if spec.template:
                return self._clone(spec, guest, node_id)
            return self._boot(spec, guest, Keys.generate(), node_id)

        guest = self.guest_of(spec)
        try:
            return launch(guest)
        except (Removed, VMGone) as error:
            if isinstance(error, QEMUCrashed) or self._is_stored(guest):
                raise
            self._progress.note(f"guest image {spec.image} is not in the store any more as it was: looking again")
            self._bury_lost(spec)
            return launch(self.guest_of(spec))

    def _is_stored(self, guest: Guest) -> bool:
        """Return whether the store has this guest image; another one of its key, or none, is looked for again."""
        with self.store() as shop:
            manifest = shop.manifest(guest.place)
        if manifest is not None and (manifest.get("disk") or {}).get("sha256") == guest.digest:
            return True
        self._guests = {wanted: each for wanted, each in self._guests.items() if each.place != guest.place}
        return False

    def _clone(self, spec: Spec, guest: Guest, node_id: str) -> VM:
        """Clone the template of this shape; one that does not restore is made anew, once."""
        __tracebackhide__ = True

        templates = self.templates()
        for tries in itertools.count(1):
            template = self._template(spec, guest, node_id)
            if why := template.refusal or self._spoiled.get(template.place):
                self._progress.note(f"VMs of {spec.image} are booted, not cloned: {why}")
                return self._boot(spec, guest, Keys.generate(), node_id)
            try:
                vm = self._start_clone(spec, guest, template, node_id)
                break
            except (BootError, VMGone, SSHError) as error:
                if tries == _TRIES or (isinstance(error, BadTemplate) and not self._is_stored(guest)):
                    raise
                reason = str(error).splitlines()[0]
                # A machine that is too busy, or another process that has just made the template anew, is no reason
                # to throw it away; the same trouble twice is.
                condemned = isinstance(error, BadTemplate) or tries > 1
                if condemned and self._is_kept_on(template):
                    self._progress.note(
                        f"a template of {spec.image} does not restore, and a VM that stays has its disk on it: "
                        f"{spec.name} is booted instead: {reason}"
                    )
                    self._bury_lost(spec)
                    return self._boot(spec, guest, Keys.generate(), node_id)
                if templates.forget(template, condemned=condemned):
                    self._progress.note(f"a template of {spec.image} does not restore and is made anew: {reason}")
                else:
                    self._progress.note(f"a clone of {spec.image} did not get ready, once more: {reason}")
                self._bury_lost(spec)  # the next one may need its room
        with _closing_on_failure(vm):
            self._plug_cards(vm)
        return vm

    def _is_kept_on(self, template: Template) -> bool:
        """Tell whether a VM that is kept has its disk on a template's, so that this must not go."""
        found = self.engine.containers(f"{LABEL}={DETACHED}", f"{USES}={template.place}")
        return any(is_kept(each) for each in found)

    def _template(self, spec: Spec, guest: Guest, node_id: str) -> Template:
        __tracebackhide__ = True

        with phase("template"):
            return self.templates().ensure(spec, guest, _Maker(self, guest, node_id))

    def _start_clone(self, spec: Spec, guest: Guest, template: Template, node_id: str, *, ahead: bool = False) -> VM:
        __tracebackhide__ = True
        if not ahead:
            self._check_wanted()
        environment = {"TEMPLATE": template.folder, **guest.machine(spec.firmware)}
        try:
            places = template.place, template.base
            container = self.starter.start(spec, places, environment, node_id, ahead=ahead)
        except Removed as error:
            raise BadTemplate(f"{spec.name}: {error}") from error
        vm = self._ready(
            spec,
            template.user,
            template.keys,
            container,
            lambda vm: vm.wait_until_cloned(template.session),
            ahead=ahead,
        )
        if spec.identity == "fresh":
            with _closing_on_failure(vm):
                vm.renew_identity()
        self._have_read(template.place, template.identity)
        self._have_read(guest.place, guest.digest)
        return vm

    def _have_read(self, place: str, identity: str) -> None:
        """Have what a VM was started from read in the background, unless this process ends before its VMs do."""
        if not self._tenure.detached:
            self._watch.want(place, identity)

    def _plug_cards(self, vm: VM) -> None:
        """Give a VM its further cards."""
        __tracebackhide__ = True
        for card in vm.spec.nics:
            vm.add_nic(self.networks.get(card.network.of_more_cards()), card.ip)

    def _boot(self, spec: Spec, guest: Guest, keys: Keys, node_id: str, save_into: str | None = None) -> VM:
        __tracebackhide__ = True
        self._check_wanted()
        user = spec.user or guest.user
        iso = cloud_init.iso(spec, keys, user, cloud_init.instance_id(keys))
        files: dict[str, dict[str, bytes | Link]] = {
            "/": {"image": Link(guest.disk)},
            "/tmp": {"cloud_init.iso": iso},  # noqa: S108  (the image's contract)
        }
        environment = guest.machine(spec.firmware)
        if save_into:
            environment |= {"TEMPLATE_SAVE": "on", "IMAGE_DIR": save_into}
        container = self.starter.start(spec, (guest.place,), environment, node_id, files=files)

        def get_ready(vm: VM) -> None:
            vm.wait_until_ready()
            if not save_into:
                self._plug_cards(vm)
            if spec.prepare is not None:
                with self._progress.step(f"preparing {spec.name} ({spec.image})") as step:
                    provision_limit.prepare(vm, step)

        vm = self._ready(spec, user, keys, container, get_ready, seed_iso=iso)
        self._have_read(guest.place, guest.digest)
        return vm

    def boot_template(self, spec: Spec, guest: Guest, keys: Keys, node_id: str, *, folder: str) -> VM:
        """Boot a VM that can be saved into a folder of the store; raises as `launch` does."""
        __tracebackhide__ = True
        self.durations.append(record := Record("template"))
        with recording(record):
            return self._boot(spec, guest, keys, node_id, save_into=folder)

    def restore_template(
        self, spec: Spec, guest: Guest, keys: Keys, node_id: str, *, folder: str, plain: Template
    ) -> VM:
        """Do the same from a copy of its plain template; raises as `launch` does, or `NotLayered`."""
        __tracebackhide__ = True
        if why := self._spoiled.get(plain.place):
            raise NotLayered(why)
        self.durations.append(record := Record("layer"))
        with recording(record):
            try:
                return self._restore_into(spec, guest, keys, node_id, folder=folder, plain=plain)
            except NotLayered as reason:
                self._bury_lost(spec)
                if isinstance(reason.__cause__, BadTemplate) and not self._is_kept_on(plain):
                    self.templates().forget(plain, condemned=True)
                raise

    def _restore_into(
        self, spec: Spec, guest: Guest, keys: Keys, node_id: str, *, folder: str, plain: Template
    ) -> VM:
        __tracebackhide__ = True
        self._check_wanted()
        # What it becomes is no first boot: cloud-init must know the instance, and has nothing more to do in it.
        iso = cloud_init.iso(plain_shape(spec), keys, plain.user, cloud_init.instance_id(plain.keys))
        environment = {
            "TEMPLATE": plain.folder,
            "TEMPLATE_SAVE": "on",
            "IMAGE_DIR": folder,
            **guest.machine(spec.firmware),
        }
        files: dict[str, dict[str, bytes | Link]] = {"/tmp": {"cloud_init.iso": iso}}  # noqa: S108
        try:
            container = self.starter.start(spec, (plain.place, plain.base), environment, node_id, files=files)
        except Removed as error:
            raise NotLayered(str(error)) from error

        def get_ready(vm: VM) -> None:
            __tracebackhide__ = True
            try:
                vm.wait_until_cloned(plain.session)
                vm.become_another(keys)
            except (BootError, VMGone, SSHError) as error:
                raise NotLayered(str(error).splitlines()[0]) from error
            title = f"provisioning {vm.name} ({spec.image})"
            with self._progress.step(title) as step, phase("provision"):
                try:
                    provision(vm, spec)
                except Unclonable as lack:
                    raise NotLayered(str(lack)) from lack
                provision_limit.prepare(vm, step)

        vm = self._ready(spec, plain.user, plain.keys, container, get_ready, seed_iso=iso)
        self._have_read(plain.place, plain.identity)
        self._have_read(guest.place, guest.digest)
        return vm

    def _ready(
        self,
        spec: Spec,
        user: str,
        keys: Keys,
        container: Container,
        get_ready: Callable[[VM], None],
        *,
        seed_iso: bytes = b"",
        ahead: bool = False,
    ) -> VM:
        """Make the handle of a started container and wait for it; when that fails, both are gone."""
        __tracebackhide__ = True
        with contextlib.ExitStack() as undo:
            undo.callback(container.close)
            vm = self._handle(spec, user, keys, container, ahead=ahead)
            vm.echo, vm.seed_iso = self.echo, seed_iso
            undo.callback(vm.close)
            self._starting.append(vm)
            undo.callback(self._starting.remove, vm)
            if not ahead:
                self._check_wanted()
            try:
                get_ready(vm)
            except BaseException:  # whatever a `prepare` raises, or a plugin when a test's time is up
                if self._keeps_lost and not ahead:
                    self.lost.append(vm)
                    if vm.folder.startswith(f"{MOUNT}/"):
                        self._scratch.add(vm.folder)
                    undo.pop_all()
                    self._starting.remove(vm)
                raise
            undo.pop_all()
            self._starting.remove(vm)
        return vm

    def _handle(self, spec: Spec, user: str, keys: Keys, container: Container, *, ahead: bool = False) -> VM:
        """Make the handle of a started container; one made `ahead` is not counted on its network as yet."""
        endpoint, network = Endpoint(self.engine, container), self.networks.get(spec.first_network)
        vm = VM(
            spec,
            user=user,
            keys=keys,
            container=container,
            endpoint=endpoint,
            network=network,
            progress=self._progress,
        )
        if not ahead:
            network.join(vm, container.addresses().mac)
        return vm


@dataclass(frozen=True)
class _Maker:
    """Starts the machines that become templates, for one launch."""

    manager: Manager
    guest: Guest
    node_id: str

    def boot(self, spec: Spec, keys: Keys, folder: str) -> VM:
        __tracebackhide__ = True
        return self.manager.boot_template(spec, self.guest, keys, self.node_id, folder=folder)

    def restore(self, spec: Spec, keys: Keys, folder: str, plain: Template) -> VM:
        __tracebackhide__ = True
        return self.manager.restore_template(spec, self.guest, keys, self.node_id, folder=folder, plain=plain)


@contextlib.contextmanager
def _closing_on_failure(vm: VM) -> Iterator[None]:
    try:
        yield
    except BaseException:
        vm.close()
        raise
