"""Assign VMs to tests: VMs that their scope shares, or new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.config.spec import check, merge, refuse_sharing
from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.plugin import session
from pytest_virtainers.plugin.lookahead import SEVERAL, next_spec
from pytest_virtainers.plugin.markers import arguments, by_name, scope_node
from pytest_virtainers.plugin.reports import used

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.vm.vm import VM, Snapshot

# The arguments under the markers of the last `vm`: a guess for the following tests.
_BASE_KEY: pytest.StashKey[list[Mapping[str, Any]]] = pytest.StashKey()
# The VMs that a node and its children share, with the snapshot that is restored at the start of each test.
_SHARED_KEY: pytest.StashKey[list[tuple[VM, Snapshot | None]]] = pytest.StashKey()


def of_markers(item: pytest.Item, base: list[Mapping[str, Any]]) -> VM:
    """Return the VM that a test's markers describe, over the arguments of `base`."""
    __tracebackhide__ = True
    item.config.stash[_BASE_KEY] = base
    return _machines(item, [merge(*base, *arguments(item))])[0]


def by_names(item: pytest.Item, base: list[Mapping[str, Any]]) -> Mapping[str, VM]:
    """Return the VMs that a test's markers name, or those of `virtainers.toml`, by their names."""
    __tracebackhide__ = True
    wanted = {name: merge(*base, *own) for name, own in by_name(item).items()}
    return dict(zip(wanted, _machines(item, list(wanted.values())), strict=True))


def one_more(item: pytest.Item, base: list[Mapping[str, Any]], folder: Path, given: Mapping[str, Any]) -> VM:
    """Launch a VM for `vm_factory`; relative paths start at `folder`."""
    __tracebackhide__ = True
    where = f"{item.nodeid}: vm_factory"
    refuse_sharing(given, where, "VMs of vm_factory end with their test")
    checked = check(given, where, folder)
    return used(item, session.launcher(item.config).launch(merge(*base, checked), item.nodeid))


def _machines(item: pytest.Item, specs: Sequence[Spec]) -> list[VM]:
    """Return a VM for each spec: a VM that its scope already shares, or a new one."""
    __tracebackhide__ = True
    launcher = session.launcher(item.config)
    present = [_present(item, spec) for spec in specs]
    missing = [spec for spec, machine in zip(specs, present, strict=True) if machine is None]
    launched = iter(launcher.launch_all(missing, item.nodeid))
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
                launcher.release(machine)
        raise
    return machines


def _present(item: pytest.Item, spec: Spec) -> VM | None:
    shared = _shared(scope_node(item, spec.scope))
    for machine, start in [each for each in shared if each[0].spec == spec]:
        if _is_usable(machine, start):
            return machine
        shared.remove((machine, start))
        session.launcher(item.config).release(machine)
    return None


def _shared(node: pytest.Item | pytest.Collector) -> list[tuple[VM, Snapshot | None]]:
    """Return the VMs that a node and its children share; they end with the node.

    There is one finalizer for all of them, as pytest-rerunfailures drops some finalizers of further tries.
    """
    if _SHARED_KEY not in node.stash:
        shared = node.stash[_SHARED_KEY] = []

        def end() -> None:
            del node.stash[_SHARED_KEY]
            for machine, _ in shared:
                session.launcher(node.config).release(machine)

        node.addfinalizer(end)
    return node.stash[_SHARED_KEY]


def _is_usable(vm: VM, start: Snapshot | None) -> bool:
    """Restore a shared VM to its snapshot, if it has one; return whether the next test can use it.

    A VM that failed in an earlier test is replaced without a message, as that test has reported it.
    """
    if start is not None:
        try:
            vm.restore(start)
        except VirtainerError:
            return False
    return vm.machine.runs


def prefetch(item: pytest.Item, following: pytest.Item | None) -> None:
    """Prefetch the VM of a test after `item`; `following` is pytest's `nextitem`."""

    def is_there(node: pytest.Item | pytest.Collector, spec: Spec) -> bool:
        return any(present.spec == spec for present, _ in node.stash.get(_SHARED_KEY, []))

    base = item.config.stash.get(_BASE_KEY, None)
    if SEVERAL & {*getattr(item, "fixturenames", ())}:
        session.prefetch(item.config, None, "")
    elif base is not None:
        session.prefetch(item.config, *next_spec(item, following, base, is_there))


def argument_sources(
    config: pytest.Config, defaults: Mapping[str, Any], prepare: Callable[[VM], object] | None
) -> list[Mapping[str, Any]]:
    """Return the arguments under those of markers: settings, then `virtainer_prepare` and `virtainer_defaults`."""
    return [
        session.settings(config).shape,
        check({"prepare": prepare}, "the fixture virtainer_prepare"),
        check(defaults, "the fixture virtainer_defaults", config.rootpath),
    ]
