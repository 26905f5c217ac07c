"""The fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Unpack

import pytest

from pytest_virtainers import session
from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.markers import arguments, by_name, scope_node
from pytest_virtainers.network_spec import DEFAULT
from pytest_virtainers.reporting import SESSION_VM_KEY, used
from pytest_virtainers.spec import check, merge, refuse_sharing
from pytest_virtainers.upcoming import SEVERAL, next_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_virtainers.arguments import Arguments
    from pytest_virtainers.handle.network import Network
    from pytest_virtainers.handle.vm import VM, Snapshot
    from pytest_virtainers.spec import Spec


class VMFactory(Protocol):
    """The type of the fixture `vm_factory`."""

    def __call__(self, name: str = "vm", **arguments: Unpack[Arguments]) -> VM:
        """Launch a VM called `name`, with the marker's other arguments; raises `SpecError` for a wrong one."""


# The layers under the markers, as `vm` last had them: a guess for the tests that are still to come.
_BASE_KEY: pytest.StashKey[list[Mapping[str, Any]]] = pytest.StashKey()
# The VMs that a node and its children share, with the snapshot to which each test's start goes back.
_SHARED_KEY: pytest.StashKey[list[tuple[VM, Snapshot | None]]] = pytest.StashKey()


@pytest.fixture(scope="session")
def virtainer_defaults() -> Mapping[str, Any]:
    """Marker arguments for all VMs of the session; redefine it in a conftest. Over options, under markers."""
    return {}


@pytest.fixture(scope="session")
def virtainer_prepare() -> Callable[[VM], object] | None:
    """A function that sets up each VM, once in its template; redefine it in a conftest. Under markers' `prepare`."""
    return None


@pytest.fixture
def vm(
    request: pytest.FixtureRequest,
    virtainer_defaults: Mapping[str, Any],
    virtainer_prepare: Callable[[VM], object] | None,
) -> VM:
    """A VM as the test's markers and the options describe it: fresh for the test, unless `scope` shares it."""
    with session.plain_errors():
        base = layers(request.config, virtainer_defaults, virtainer_prepare)
        request.config.stash[_BASE_KEY] = base
        return _machines(request.node, [merge(*base, *arguments(request.node))])[0]


@pytest.fixture
def vms(
    request: pytest.FixtureRequest,
    virtainer_defaults: Mapping[str, Any],
    virtainer_prepare: Callable[[VM], object] | None,
) -> Mapping[str, VM]:
    """The VMs that the test's markers name, or those of `virtainers.toml`, by their names; they start together."""
    with session.plain_errors():
        base = layers(request.config, virtainer_defaults, virtainer_prepare)
        wanted = {name: merge(*base, *layers) for name, layers in by_name(request.node).items()}
        return dict(zip(wanted, _machines(request.node, list(wanted.values())), strict=True))


def _machines(item: pytest.Item, specs: Sequence[Spec]) -> list[VM]:
    """Give a VM for each spec: one that is there in its scope, or a new one."""
    __tracebackhide__ = True
    manager = session.manager(item.config)
    present = [_present(item, spec) for spec in specs]
    missing = [spec for spec, machine in zip(specs, present, strict=True) if machine is None]
    launched = iter(manager.launch_all(missing, item.nodeid))
    machines = [used(item, machine or next(launched), shared=machine is not None) for machine in present]
    try:
        for spec, machine, former in zip(specs, machines, present, strict=True):
            if former is None:
                node = scope_node(item, spec.scope)
                snapshot = machine.snapshot() if spec.reset == "snapshot" and node is not item else None
                _shared(node).append((machine, snapshot))
    except BaseException:
        for machine, former in zip(machines, present, strict=True):
            if former is None:
                manager.retire(machine)
        raise
    return machines


def _present(item: pytest.Item, spec: Spec) -> VM | None:
    shared = _shared(scope_node(item, spec.scope))
    for machine, start in [each for each in shared if each[0].spec == spec]:
        if _is_usable(machine, start):
            return machine
        shared.remove((machine, start))
        session.manager(item.config).retire(machine)
    return None


def _shared(node: pytest.Item | pytest.Collector) -> list[tuple[VM, Snapshot | None]]:
    """Give the VMs that a node and its children share; they end with it.

    There is one finalizer for all: of those that other tries of a test add, pytest-rerunfailures forgets some.
    """
    if _SHARED_KEY not in node.stash:
        shared = node.stash[_SHARED_KEY] = []

        def end() -> None:
            del node.stash[_SHARED_KEY]
            for machine, _ in shared:
                session.manager(node.config).retire(machine)

        node.addfinalizer(end)
    return node.stash[_SHARED_KEY]


def _is_usable(machine: VM, start: Snapshot | None) -> bool:
    """Bring a shared VM back to its start, if it has one; tell whether it is fit for the next test.

    One that was lost in an earlier test is replaced, as that test's failure has said all about it.
    """
    if start is not None:
        try:
            machine.restore(start)
        except VirtainerError:
            return False
    return machine.runs


def prefetch(item: pytest.Item, following: pytest.Item | None) -> None:
    """Have the VM made ready that a test after `item` will ask for; `following` is pytest's `nextitem`."""

    def is_there(node: pytest.Item | pytest.Collector, spec: Spec) -> bool:
        return any(present.spec == spec for present, _ in node.stash.get(_SHARED_KEY, []))

    base = item.config.stash.get(_BASE_KEY, None)
    if SEVERAL & {*getattr(item, "fixturenames", ())}:
        session.prefetch(item.config, None, "")
    elif base is not None:
        session.prefetch(item.config, *next_spec(item, following, base, is_there))


@pytest.fixture(scope="session")
def virtainer_network(request: pytest.FixtureRequest) -> Network:
    """The network of VMs that ask for no other: faults between them, and captures."""
    with session.plain_errors():
        internet = request.config.stash[session.SETTINGS_KEY].shape["internet"]
        return session.manager(request.config).networks.get(DEFAULT.of_first_card(internet=internet))


@pytest.fixture(scope="session")
def session_vm(
    request: pytest.FixtureRequest,
    virtainer_defaults: Mapping[str, Any],
    virtainer_prepare: Callable[[VM], object] | None,
) -> Iterator[VM]:
    """One VM for all tests of this process, as options and `virtainer_defaults` describe it."""
    with session.plain_errors():
        base = layers(request.config, virtainer_defaults, virtainer_prepare)
        machine = _launch(request, merge(*base, {"scope": "session"}))
    request.config.stash[SESSION_VM_KEY] = machine
    yield machine
    session.manager(request.config).retire(machine)


@pytest.fixture
def vm_factory(
    request: pytest.FixtureRequest,
    virtainer_defaults: Mapping[str, Any],
    virtainer_prepare: Callable[[VM], object] | None,
) -> Iterator[VMFactory]:
    """A function that launches VMs: `vm_factory("db", ram="2G")`; all of them end with the test."""
    launched: list[VM] = []

    def launch(name: str = "vm", **given: Unpack[Arguments]) -> VM:
        __tracebackhide__ = True
        where = f"{request.node.nodeid}: vm_factory"
        with session.plain_errors():
            refuse_sharing(given, where, "these end with their test")
            checked = check({"name": name, **given}, where, request.path.parent)
            base = layers(request.config, virtainer_defaults, virtainer_prepare)
            machine = _launch(request, merge(*base, checked))
        launched.append(machine)
        return used(request.node, machine)

    yield launch
    for machine in reversed(launched):
        session.manager(request.config).retire(machine)


def layers(
    config: pytest.Config, defaults: Mapping[str, Any], prepare: Callable[[VM], object] | None
) -> list[Mapping[str, Any]]:
    """Return the layers under the markers: settings, then `virtainer_prepare` and `virtainer_defaults`."""
    return [
        config.stash[session.SETTINGS_KEY].shape,
        check({"prepare": prepare}, "the fixture virtainer_prepare"),
        check(defaults, "the fixture virtainer_defaults", config.rootpath),
    ]


def _launch(request: pytest.FixtureRequest, spec: Spec) -> VM:
    __tracebackhide__ = True
    return session.manager(request.config).launch(spec, request.node.nodeid)
