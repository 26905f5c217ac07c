"""The fixtures. Every pytest run loads this module, so imports wait until a test requests a VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Unpack

import pytest

from pytest_virtainers.plugin import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_virtainers.config.argument_types import Arguments
    from pytest_virtainers.vm.network import Network
    from pytest_virtainers.vm.vm import VM


class VMFactory(Protocol):
    """The type of the fixture `vm_factory`."""

    def __call__(self, name: str = "vm", **arguments: Unpack[Arguments]) -> VM:
        """Launch a VM with this name and the marker's other arguments; raise `SpecError` for a wrong argument."""


@pytest.fixture(scope="session")
def virtainer_defaults() -> Mapping[str, Any]:
    """Return marker arguments for all VMs of the session; override it in a conftest. Markers take precedence."""
    return {}


@pytest.fixture(scope="session")
def virtainer_prepare() -> Callable[[VM], object] | None:
    """Return a function that prepares each template; override it in a conftest. Markers take precedence."""
    return None


@pytest.fixture
def vm(
    request: pytest.FixtureRequest,
    virtainer_defaults: Mapping[str, Any],
    virtainer_prepare: Callable[[VM], object] | None,
) -> VM:
    """Return a VM as described by markers and options: a new one for each test, unless `scope` shares it."""
    from pytest_virtainers.plugin.allocation import argument_sources, of_markers

    with session.plain_errors():
        base = argument_sources(request.config, virtainer_defaults, virtainer_prepare)
        return of_markers(request.node, base)


@pytest.fixture
def vms(
    request: pytest.FixtureRequest,
    virtainer_defaults: Mapping[str, Any],
    virtainer_prepare: Callable[[VM], object] | None,
) -> Mapping[str, VM]:
    """Return the VMs that the test's markers name, or those of `virtainers.toml`, by name; they start together."""
    from pytest_virtainers.plugin.allocation import argument_sources, by_names

    with session.plain_errors():
        base = argument_sources(request.config, virtainer_defaults, virtainer_prepare)
        return by_names(request.node, base)


@pytest.fixture(scope="session")
def virtainer_network(request: pytest.FixtureRequest) -> Network:
    """Return the default network of VMs, for link faults and captures."""
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
    """Return one VM for all tests of this process, as described by options and `virtainer_defaults`."""
    from pytest_virtainers.config.spec import merge
    from pytest_virtainers.plugin.allocation import argument_sources
    from pytest_virtainers.plugin.reports import SESSION_VM_KEY

    with session.plain_errors():
        base = argument_sources(request.config, virtainer_defaults, virtainer_prepare)
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
    """Return a function that launches VMs: `vm_factory("db", ram="2G")`; they end with the test."""
    launched: list[VM] = []

    def launch(name: str = "vm", **given: Unpack[Arguments]) -> VM:
        __tracebackhide__ = True
        from pytest_virtainers.plugin.allocation import argument_sources, one_more

        with session.plain_errors():
            base = argument_sources(request.config, virtainer_defaults, virtainer_prepare)
            machine = one_more(request.node, base, request.path.parent, {"name": name, **given})
        launched.append(machine)
        return machine

    yield launch
    for machine in reversed(launched):
        session.launcher(request.config).release(machine)
