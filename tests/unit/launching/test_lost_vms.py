"""Machines that are lost while they are launched, and the disks of those whose container is gone."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.engine.plan import Bind, Plan
from pytest_virtainers.errors import BootTimeout, EngineError, GuestStalled
from pytest_virtainers.guests.images import Guest
from pytest_virtainers.launching import launcher as module
from pytest_virtainers.launching.container_plan import Starter
from pytest_virtainers.launching.launcher import Manager
from pytest_virtainers.launching.networks import Networks
from pytest_virtainers.launching.templates import Template
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.support.progress import SILENT
from tests.unit.memory_engine import MemoryContainer, MemoryEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE, BOOT = merge(resolve([]).shape, {"template": True}), merge(resolve([]).shape, {"template": False})


class World:
    """What happens, in order: machines are started and end; each waits for the next of `fates`."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.fates: list[BaseException | None] = []
        self.refuses_to_go = False
        self.engine = MemoryEngine()

    def start(
        self, _spec: object, _places: object, environment: dict[str, str], _node_id: str, **_named: object
    ) -> Any:
        number = sum(each.startswith("start") for each in self.events) + 1
        self.events.append(f"start {number}")
        addresses = SimpleNamespace(mac="")
        return SimpleNamespace(
            number=number, environment=environment, close=lambda: None, addresses=lambda: addresses
        )

    def shell(self, *words: str) -> None:
        self.events.append(" ".join(words))

    def machine(self, spec: object, *, container: Any, **_: object) -> Any:
        return Machine(self, spec, container)

    @contextmanager
    def store(self) -> Iterator[Any]:
        yield self


class Machine:
    def __init__(self, world: World, spec: object, container: Any) -> None:
        self.spec, self.container = spec, container
        self.networks = ()
        self.world, self.number = world, container.number
        self.folder = container.environment.get("IMAGE_DIR", "/mounted")

    def wait_until_ready(self, _session: object = None) -> None:
        fate = self.world.fates.pop(0)
        if fate is not None:
            raise fate

    wait_until_cloned = wait_until_ready

    def close(self) -> None:
        self.world.events.append(f"end {self.number}")
        if self.world.refuses_to_go:
            raise EngineError("it does not go")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(Starter, "start", world.start)
    monkeypatch.setattr(Manager, "store", world.store)
    monkeypatch.setattr(module, "find", lambda _choice: world.engine)
    monkeypatch.setattr(module, "Endpoint", lambda *_: None)
    monkeypatch.setattr(module, "VM", world.machine)
    monkeypatch.setattr(Networks, "get", lambda *_: SimpleNamespace(join=lambda *_: None))
    return world


@pytest.fixture
def manager(world: World) -> Iterator[Manager]:
    manager = make(keeps_lost=True)
    yield manager
    manager.close()


def make(*, keeps_lost: bool) -> Manager:
    manager: Any = Manager(resolve([]), SILENT, keeps_lost=keeps_lost)
    manager._budget = SimpleNamespace(check=lambda _: None)
    manager._guests["debian-13", "auto"] = Guest("x", "debian", "")
    template = Template("key", "guests/debian-13-abc", "debian", Keys.generate())
    manager._templates = SimpleNamespace(ensure=lambda *_: template, forget=lambda *_, **_named: False)
    manager._runtime_image = "runtime"
    return manager  # type: ignore[no-any-return]


@pytest.mark.parametrize("fate", [BootTimeout("slow"), KeyError("prepare"), pytest.fail.Exception("Timeout >1s")])
def test_a_machine_whose_launch_fails_stays_until_its_evidence_is_taken(
    fate: BaseException, manager: Manager, world: World
) -> None:
    world.fates = [fate]
    with pytest.raises(type(fate)):
        manager.launch(BOOT)
    assert len(manager.lost) == 1
    assert world.events == ["start 1"]
    manager.bury()
    assert (world.events, manager.lost) == (["start 1", "end 1"], [])


def make_templates(manager: Any) -> None:
    """Have each clone's template made first, in a scratch folder that is always called the same."""

    def ensure(spec: object, _guest: object, maker: Any) -> Any:
        return maker.boot(spec, Keys.generate(), "/store/.scratch-1")

    manager._templates = SimpleNamespace(ensure=ensure)


@pytest.mark.parametrize("fate", [BootTimeout("slow"), KeyError("prepare"), KeyboardInterrupt()])
def test_one_that_was_to_become_a_template_ends_before_its_half_made_folder_goes(
    fate: BaseException, manager: Manager, world: World
) -> None:
    make_templates(manager)
    world.fates = [fate]
    with pytest.raises(type(fate)):
        manager.launch(CLONE)
    assert [each.folder for each in manager.lost] == ["/store/.scratch-1"]
    assert world.events == ["start 1"]
    manager.bury(retired=False)
    assert world.events == ["start 1", "end 1", 'rm -rf "$@" /store/.scratch-1']
    manager.bury()
    assert len(world.events) == 3, "once"


def test_its_folder_goes_with_the_run_even_if_it_does_not_go_itself(world: World) -> None:
    manager = make(keeps_lost=True)
    make_templates(manager)
    world.fates, world.refuses_to_go = [BootTimeout("slow")], True
    with pytest.raises(BootTimeout):
        manager.launch(CLONE)
    with pytest.raises(EngineError, match="it does not go"):
        manager.close()
    assert world.events == ["start 1", "end 1", 'rm -rf "$@" /store/.scratch-1']


def test_when_nobody_wants_evidence_the_folder_is_its_builders(world: World) -> None:
    manager = make(keeps_lost=False)
    make_templates(manager)
    world.fates = [BootTimeout("slow")]
    with pytest.raises(BootTimeout):
        manager.launch(CLONE)
    manager.close()
    assert world.events == ["start 1", "end 1"]


def test_it_ends_at_once_when_nobody_wants_evidence(world: World) -> None:
    manager = make(keeps_lost=False)
    world.fates = [BootTimeout("slow")]
    with pytest.raises(BootTimeout):
        manager.launch(BOOT)
    assert (world.events, manager.lost) == (["start 1", "end 1"], [])
    manager.close()


@pytest.mark.parametrize(("spec", "fate"), [(CLONE, BootTimeout("slow")), (BOOT, GuestStalled("it hangs"))])
def test_a_machine_that_was_lost_makes_room_for_the_next_try(
    spec: Any, fate: BaseException, manager: Manager, world: World
) -> None:
    world.fates = [fate, None]
    vm: Any = manager.launch(spec)
    assert vm.number == 2
    assert world.events == ["start 1", "end 1", "start 2"]
    assert manager.lost == []


def test_a_machine_that_is_not_given_ends_with_the_run(world: World) -> None:
    manager = make(keeps_lost=True)
    world.fates = [BootTimeout("slow"), None]
    with pytest.raises(BootTimeout):
        manager.launch(BOOT)
    world.refuses_to_go = True
    with pytest.raises(EngineError, match="it does not go"):
        manager.launch(BOOT)
    world.refuses_to_go = False
    manager.close()
    assert world.events == ["start 1", "start 2", "end 1", "end 2"]


def test_machines_that_nobody_uses_any_more_end_all_even_if_one_does_not_go(manager: Manager, world: World) -> None:
    world.fates = [None, None]
    for vm in [manager.launch(BOOT), manager.launch(BOOT)]:
        manager.retire(vm)
        manager.retire(vm)
    manager.bury(retired=False)
    assert not any(each.startswith("end") for each in world.events)
    world.refuses_to_go = True
    with pytest.raises(EngineError):
        manager.bury()
    assert sorted(each for each in world.events if each.startswith("end")) == ["end 1", "end 2"]


@pytest.mark.parametrize(
    ("volume", "environment"),
    [
        ("web-disk", {"TEMPLATE": "/store/templates/x"}),
        (None, {"TEMPLATE_SAVE": "on", "IMAGE_DIR": "/store/.scratch-1"}),
    ],
)
def test_the_disk_of_a_machine_outlives_the_container_that_rescues_it(
    volume: str | None,
    environment: dict[str, str],
    manager: Manager,
    world: World,
) -> None:
    binds = (Bind("/store/guests/x", "/volumes/guests/x"),)
    plan = Plan("web", "vm", "an-image", environment=environment, binds=binds, volume=volume)
    vm: Any = SimpleNamespace(volume=volume, container=MemoryContainer(plan))
    with manager.rescue(vm):
        pass
    (made,) = world.engine.created
    disk = () if volume is None else (Bind("/mounted", volume, writable=True),)
    assert (made.volume, made.environment, made.plan.kind) == (None, environment, "helper")
    assert (made.binds, made.plan.offline) == ((*binds, *disk), True), "it has what the machine had, and no network"
    assert made.events == ["start", "close"]
