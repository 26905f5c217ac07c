"""A launcher with its real parts, except those that need an engine: containers that run nothing, VMs that only
wait."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from typing_extensions import override

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.engine import runtime_image
from pytest_virtainers.engine.facts import Addresses, Image
from pytest_virtainers.engine.plan import Plan
from pytest_virtainers.errors import EngineError
from pytest_virtainers.guests.images import GuestImage
from pytest_virtainers.launching.bring_up import BringUp
from pytest_virtainers.launching.clones import Clones
from pytest_virtainers.launching.container_plan import Planner
from pytest_virtainers.launching.containers import Containers
from pytest_virtainers.launching.damage import Damage
from pytest_virtainers.launching.disks import Disks
from pytest_virtainers.launching.failed import FailedVMs
from pytest_virtainers.launching.guest_images import GuestImages
from pytest_virtainers.launching.integrity import Checked, Watch
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.launching.lifetime import DISPOSABLE
from pytest_virtainers.launching.memory_budget import Budget
from pytest_virtainers.launching.networks import Networks
from pytest_virtainers.launching.once import Once
from pytest_virtainers.launching.prefetch import Prefetcher
from pytest_virtainers.launching.run_store import RunStore
from pytest_virtainers.launching.runtime_image import RuntimeImage
from pytest_virtainers.launching.starting_vms import StartingVMs
from pytest_virtainers.launching.templates import Maker, Template, Templates
from pytest_virtainers.ssh import resumable
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.store.volume import OpenStore
from pytest_virtainers.support.forks import Owner
from pytest_virtainers.support.progress import Progress
from pytest_virtainers.support.timings import Record
from pytest_virtainers.vm.machine import Machine
from pytest_virtainers.vm.vm import VM
from tests.unit.memory_engine import MemoryContainer, MemoryEngine

BASE = resolve([]).shape
CLONE, BOOT = merge(BASE, {"template": True}), merge(BASE, {"template": False})
GUEST = GuestImage("debian-13-abc", "debian", "digest")
TEMPLATE = Template("abc", GUEST.place, "debian", Keys.generate())
RUN = "0123abcd"


def engine() -> MemoryEngine:
    """Return an engine that only has the runtime image."""
    return MemoryEngine(images={runtime_image.reference(): Image("sha256:runtime", "amd64", {})})


class FakeContainer(MemoryContainer):
    """A container that records its start and its end in the events of its world."""

    def __init__(self, world: "World", plan: Plan) -> None:
        super().__init__(plan, connected={"": Addresses("02:42:0a:d5:00:80")})
        self.world, self.gone = world, threading.Event()
        world.containers.append(self)
        self.number = len(world.containers)
        world.events.append(f"start {self.number}")

    @override
    def start(self) -> None:
        self.world.on_start(self)

    @override
    def wait(self, seconds: float) -> bool:
        return self.gone.wait(seconds)

    @override
    def close(self) -> None:
        if not self.gone.is_set():
            self.gone.set()
            self.world.events.append(f"end {self.number}")
        if self.world.refuses_to_go:
            raise EngineError("it does not go")


class FakeMachine(Machine):
    """It becomes ready when the `fate` of its world returns."""

    def __init__(self, world: "World", spec: Spec, **parts: Any) -> None:
        super().__init__(spec, **parts)
        self.world = world

    @property
    def number(self) -> int:
        return cast("FakeContainer", self.container).number

    @property
    @override
    def alive(self) -> bool:
        return self.runs

    @override
    def wait_until_ready(self) -> None:
        self.world.fate(self)

    @override
    def wait_until_cloned(self, session: resumable.Session | None) -> None:
        self.world.fate(self)


def number(vm: VM) -> int:
    """Return the number of a VM's container, from 1."""
    return cast("FakeMachine", vm.machine).number


class FakeStore(RunStore):
    """It records the scripts that are run in it; `opened` stands for the opened store."""

    opened: Any = None

    def __init__(self, world: "World", *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.world = world

    @contextmanager
    @override
    def open(self) -> Iterator[OpenStore]:
        yield cast("OpenStore", self.opened or self)

    def shell(self, _script: str, *words: str) -> None:
        self.world.events.append(" ".join((_script, *words)))


class FakeGuests(GuestImages):
    """It has one guest image, and after `is_stored` has returned `False`, the next one."""

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.there, self.stored = [GUEST], {GUEST}

    @override
    def get(self, image: str, arch: str = "auto") -> GuestImage:
        return self.there[0]

    @override
    def known(self, spec: Spec) -> GuestImage | None:
        return self.there[0]

    @override
    def is_stored(self, guest: GuestImage) -> bool:
        if guest in self.stored:
            return True
        self.there.remove(guest)
        return False


class FakeTemplates(Templates):
    """It returns another template each time, or that of `make`; it records which ones were condemned."""

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.given: list[Template] = []
        self.condemned: list[bool] = []
        self.forgotten: list[Template] = []
        self.layers: list[Template] = []
        self.others_replaced_it = False
        self.make: Callable[[Spec, Maker], Template] = lambda _spec, _maker: replace(TEMPLATE, keys=Keys.generate())

    @override
    def ensure(self, spec: Spec, guest: GuestImage, maker: Maker) -> Template:
        template = self.make(spec, maker)
        self.given.append(template)
        return template

    @override
    def find(self, spec: Spec, guest: GuestImage) -> Template | None:
        return self.given[-1] if self.given else None

    @override
    def known(self, place: str) -> Template | None:
        return next((each for each in self.given if each.place == place), None)

    @override
    def made_from(self, place: str) -> list[Template]:
        return [each for each in self.layers if each.origin == place]

    @override
    def forget(self, template: Template, *, condemned: bool) -> bool:
        self.condemned.append(condemned)
        self.forgotten.append(template)
        return condemned and not self.others_replaced_it


class FakeWatch(Watch):
    """It finds the damage that is put into `found`."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.found: list[Checked] = []

    @override
    def want(self, place: str, identity: str) -> None:
        pass

    @override
    def damage(self) -> list[Checked]:
        found, self.found = self.found, []
        return found


class World:
    """A launcher and its parts; `events` lists which containers started and ended, in order.

    Attributes:
        fates: what happens to the next VMs that are waited for, in order; `None`: they become ready.
        in_use: places of templates on which a detached VM has its disk.
    """

    def __init__(self, engine: MemoryEngine, *, keep_failed: bool = True) -> None:
        self.events: list[str] = []
        self.notes: list[str] = []
        self.containers: list[FakeContainer] = []
        self.fates: list[BaseException | None] = []
        self.fate: Callable[[FakeMachine], object] = self._next_fate
        self.on_start: Callable[[FakeContainer], object] = lambda _container: None
        self.refuses_to_go = False
        self.in_use: set[str] = set()
        self.durations = list[Record]()
        engine.factory = lambda plan: FakeContainer(self, plan)
        settings = replace(resolve([]), store="/my/store")
        progress, owner, once = Progress(self.notes.append, live=False), Owner("this launcher", ""), Once()
        self.runtime_image = RuntimeImage(engine, once, progress)
        self.store = FakeStore(
            self, engine, settings, RUN, runtime_image=self.runtime_image, owner=owner, progress=progress
        )
        self.networks = Networks(engine, RUN, recorded=False)
        self.guests = FakeGuests(
            self.store, locks=SharedLocks(), once=once, progress=progress, engine_arch=engine.arch
        )
        self.templates = FakeTemplates(
            self.store.open, holds=SharedLocks(), runtime_id=self.runtime_image.id, progress=progress, once=once
        )
        self.watch = FakeWatch(self.store.open_read_only)
        self.failed = FailedVMs(self.store, keep=keep_failed)
        self.damage = Damage(self.watch, self.guests, self.templates, self._is_in_use)
        memory, prefetcher = Budget(engine, lambda whole: whole, RUN, progress), Prefetcher()
        access = self.store.access
        planner = Planner(
            settings,
            "main",
            DISPOSABLE,
            runtime_image=self.runtime_image,
            access=access,
        )
        containers = Containers(
            engine,
            planner,
            RUN,
            networks=self.networks,
            access=access,
            memory=memory,
            give_back=prefetcher.give_back,
        )
        self.starting_vms = StartingVMs(
            self.machine, engine, self.networks, self.failed, echo=None, progress=progress
        )
        self.bring_up = BringUp(
            containers, self.starting_vms, self.networks, verify=self.damage.check, progress=progress
        )
        self.clones = Clones(
            self.templates,
            self.guests,
            self.bring_up,
            self.failed,
            self.damage,
            in_use=self._is_in_use,
            durations=self.durations,
            progress=progress,
        )
        closing = contextlib.ExitStack()
        closing.callback(self.networks.close)
        self.launcher = Launcher(
            engine,
            RUN,
            runtime_image=self.runtime_image,
            store=self.store,
            guests=self.guests,
            templates=self.templates,
            networks=self.networks,
            memory=memory,
            containers=containers,
            starting_vms=self.starting_vms,
            bring_up=self.bring_up,
            clones=self.clones,
            prefetcher=prefetcher,
            failed=self.failed,
            damage=self.damage,
            disks=Disks(engine, RUN, runtime_image=self.runtime_image, access=access),
            durations=self.durations,
            owner=owner,
            closing=closing,
            progress=progress,
        )

    def machine(self, spec: Spec, **parts: Any) -> Machine:
        return FakeMachine(self, spec, **parts)

    def launch(self, spec: Spec) -> VM:
        return self.launcher.launch(spec, "a-test")

    def launch_all(self, specs: Sequence[Spec]) -> list[VM]:
        return self.launcher.launch_all(specs, "a-test")

    def ended(self) -> set[str]:
        """Return the names of the VMs whose containers were closed."""
        return {each.environment["VM_NAME"] for each in self.containers if each.gone.is_set()}

    def _next_fate(self, _machine: FakeMachine) -> None:
        fate = self.fates.pop(0) if self.fates else None
        if fate is not None:
            raise fate

    def _is_in_use(self, template: Template) -> bool:
        return template.place in self.in_use
