"""Several machines that start together: what becomes of all when one fails, or when somebody interrupts them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.errors import BootTimeout, GuestStalled, QEMUCrashed, VMGone
from pytest_virtainers.guests.images import Guest
from pytest_virtainers.launching import launcher as module
from pytest_virtainers.launching.launcher import Manager
from pytest_virtainers.launching.networks import Setting
from pytest_virtainers.launching.templates import Template
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.support.progress import SILENT
from tests.unit.memory_engine import MemoryContainer, MemoryEngine

SPECS = [merge(resolve([]).shape, {"template": True, "name": name}) for name in ("one", "two", "three")]


class World:
    """Its containers and VMs; a VM is ready when `fate` of its name returns."""

    def __init__(self) -> None:
        self.engine = MemoryEngine(factory=FakeContainer)
        self.closed: list[str] = []
        self.fate: Callable[[FakeVM], object] = lambda _vm: None

    def vm(self, spec: Spec, *, container: "FakeContainer", **_: object) -> "FakeVM":
        return FakeVM(self, spec, container)


class FakeContainer(MemoryContainer):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.gone = threading.Event()

    def close(self) -> None:
        self.gone.set()


class FakeVM:
    folder, networks = "/mounted", ()

    def __init__(self, world: World, spec: Spec, container: FakeContainer) -> None:
        self.spec, self.name, self.container, self.world = spec, spec.name, container, world
        self.first_command: object = None

    def wait_until_cloned(self, _session: object) -> None:
        self.world.fate(self)

    def close(self) -> None:
        self.world.closed.append(self.name)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(module, "find", lambda _choice: world.engine)
    monkeypatch.setattr(module, "VM", world.vm)
    monkeypatch.setattr(module, "Endpoint", lambda *_: None)
    return world


@pytest.fixture
def manager(world: World) -> Iterator[Manager]:
    manager: Any = Manager(resolve([]), SILENT, keeps_lost=True)
    network = SimpleNamespace(port=lambda *_, **_named: None, join=lambda *_: None)
    manager.networks = manager.starter._networks = SimpleNamespace(
        get=lambda _: network,
        setting=lambda _: Setting({}, {}, ()),
        guard=lambda *_: None,
        close=lambda: None,
    )
    manager._budget = manager.starter._memory = SimpleNamespace(
        check=lambda _: None, room=lambda *_, **_named: nullcontext()
    )
    manager._guests["debian-13", "auto"] = Guest("x", "debian", "")
    template = Template("key", "guests/debian-13-abc", "debian", Keys.generate())
    manager._templates = SimpleNamespace(ensure=lambda *_: template, forget=lambda *_, **_named: False)
    manager._runtime_image = "runtime"
    yield manager
    manager.close()


def test_all_are_there_in_the_order_in_which_they_were_asked_for(manager: Manager, world: World) -> None:
    together = threading.Barrier(3, timeout=30)
    world.fate = lambda _vm: together.wait()
    assert [vm.name for vm in manager.launch_all(SPECS)] == ["one", "two", "three"]
    assert (manager.lost, world.closed) == ([], [])


def test_when_some_fail_all_are_lost_and_all_failures_are_told(manager: Manager, world: World) -> None:
    def fate(vm: FakeVM) -> None:
        if vm.name != "two":
            raise BootTimeout(f"{vm.name} is slow")

    world.fate = fate
    with pytest.raises(BootTimeout, match=r"^one is slow") as caught:
        manager.launch_all(SPECS)
    assert caught.value.__notes__ == ["And: three is slow"]
    assert {vm.name for vm in manager.lost} == {"one", "two", "three"}
    assert manager._vms == []
    manager.bury()
    assert set(world.closed) == {"one", "two", "three"}


def test_an_interrupted_start_ends_at_once_and_nothing_is_tried_again(
    manager: Manager, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_hang = threading.Barrier(3, timeout=30)

    def fate(vm: FakeVM) -> None:
        if vm.name != "one":  # that one is ready
            two_hang.wait()
            assert vm.container.gone.wait(30)
            raise VMGone("its container is gone")

    def interrupted(launches: Any) -> object:
        if not manager._given_up.is_set():
            two_hang.wait()
            wait(launches[:1])
            raise KeyboardInterrupt
        return wait(launches)

    world.fate = fate
    monkeypatch.setattr(module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager.launch_all(SPECS)
    assert len(world.engine.created) == 3, "a clone that does not get ready is tried again, but not this time"
    assert manager._vms == []
    manager.bury()
    assert set(world.closed) == {"one", "two", "three"}
    monkeypatch.setattr(module, "wait", wait)
    world.fate = lambda _vm: None
    assert len(manager.launch_all(SPECS)) == 3, "the next ones start as ever"


def test_who_waits_for_a_template_when_it_is_interrupted_starts_nothing(
    manager: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, waiting = manager._templates.ensure(), threading.Barrier(4, timeout=30)

    def ensure(*_: object) -> Template:
        if threading.current_thread() is not threading.main_thread():
            waiting.wait()
            manager._given_up.wait(30)
        return template  # type: ignore[no-any-return]

    def interrupted(launches: Any) -> object:
        if not manager._given_up.is_set():
            waiting.wait()
            raise KeyboardInterrupt
        return wait(launches)

    manager._templates = SimpleNamespace(ensure=ensure)
    monkeypatch.setattr(module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager.launch_all(SPECS)
    assert world.engine.created == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (GuestStalled("it hangs"), "the kernel of one (debian-13) hung while it booted: booting anew, once"),
        (QEMUCrashed("an assertion"), "QEMU of one (debian-13) crashed while it booted: booting anew, once"),
    ],
)
def test_what_goes_wrong_under_emulation_only_is_tried_once_more(
    error: Exception, told: str, manager: Manager, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_so: list[str] = []
    monkeypatch.setattr(manager._progress, "note", told_so.append)
    failures = [error]

    def ensure(*_: object) -> Template:
        if failures:
            raise failures.pop()
        return Template("key", "guests/debian-13-abc", "debian", Keys.generate())

    monkeypatch.setattr(manager._templates, "ensure", ensure)
    assert manager.launch(SPECS[0]).name == "one"
    assert told_so == [told]
    failures += [error, error]
    with pytest.raises(type(error)):
        manager.launch(SPECS[1])
