"""The fixtures. Each pytest run loads this module, so what they need is imported when a test asks for a VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Unpack

import pytest

from pytest_virtainers.plugin import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_virtainers.config.keywords import Arguments
    from pytest_virtainers.vm.network import Network
    from pytest_virtainers.vm.vm import VM


class VMFactory(Protocol):
    """The type of the fixture `vm_factory`."""

    def __call__(self, name: str = "vm", **arguments: Unpack[Arguments]) -> VM:
        """Launch a VM called `name`, with the marker's other arguments; raises `SpecError` for a wrong one."""


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
    from pytest_virtainers.plugin.allocation import layers, of_markers

    with session.plain_errors():
        base = layers(request.config, virtainer_defaults, virtainer_prepare)
        return of_markers(request.node, base)


@pytest.fixture
def vms(
    request: pytest.FixtureRequest,
    virtainer_defaults: Mapping[str, Any],
    virtainer_prepare: Callable[[VM], object] | None,
) -> Mapping[str, VM]:
    """The VMs that the test's markers name, or those of `virtainers.toml`, by their names; they start together."""
    from pytest_virtainers.plugin.allocation import by_names, layers

    with session.plain_errors():
        base = layers(request.config, virtainer_defaults, virtainer_prepare)
        return by_names(request.node, base)


@pytest.fixture(scope="session")
def virtainer_network(request: pytest.FixtureRequest) -> Network:
    """The network of VMs that ask for no other: faults between them, and captures."""
    from pytest_virtainers.config.network_spec import DEFAULT

    with session.plain_errors():
        internet = session.settings(request.config).shape["internet"]
        return session.launcher(request.config).networks.get(DEFAULT.of_first_card(internet=internet))


@pytest.fixture(scope="session")
def session_vm(
    request: pytest.FixtureRequest,
    virtainer_defaults: Mapping[str, Any],
    virtainer_prepare: Callable[[VM], object] | None,
) -> Iterator[VM]:
    """One VM for all tests of this process, as options and `virtainer_defaults` describe it."""
    from pytest_virtainers.config.spec import merge
    from pytest_virtainers.plugin.allocation import layers
    from pytest_virtainers.plugin.reports import SESSION_VM_KEY

    with session.plain_errors():
        base = layers(request.config, virtainer_defaults, virtainer_prepare)
        spec = merge(*base, {"scope": "session"})
        machine = session.launcher(request.config).launch(spec, request.node.nodeid)
    request.config.stash[SESSION_VM_KEY] = machine
    yield machine
    session.launcher(request.config).release(machine)


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
        from pytest_virtainers.plugin.allocation import layers, one_more

        with session.plain_errors():
            base = layers(request.config, virtainer_defaults, virtainer_prepare)
            machine = one_more(request.node, base, request.path.parent, {"name": name, **given})
        launched.append(machine)
        return machine

    yield launch
    for machine in reversed(launched):
        session.launcher(request.config).release(machine)
