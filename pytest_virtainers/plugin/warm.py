"""`pytest --virtainer-warm`: create the images and templates that the collected tests need, without running tests.

The needs of a test follow from its markers and the fixtures `virtainer_defaults` and `virtainer_prepare`. These two
and their dependencies are set up for each test with a VM; its other fixtures are not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.config.arguments import ARGUMENTS
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.plugin import session as run
from pytest_virtainers.plugin.allocation import argument_sources
from pytest_virtainers.plugin.markers import arguments, by_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_FIXTURES = frozenset({"vm", "vms", "session_vm"})
_FACTORY = "vm_factory"
_OUTCOMES = (Exception, pytest.fail.Exception)
_TESTS_SHOWN = 3


@dataclass
class Need:
    """One shape of VMs, and the tests with such a VM."""

    spec: Spec
    tests: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        spec = self.spec
        facts = [str(spec.image), f"{spec.ram} MiB", f"{spec.cpus} CPU", f"disk {spec.disk} MiB"]
        facts += [each for each in (spec.accel, spec.arch, spec.firmware) if each != "auto"]
        facts += [] if spec.internet else ["no internet"]
        facts += [
            f"{name} {', '.join(map(str, found))}"
            for name in ("packages", "run_commands", "files", "user_data", "env")
            if (found := getattr(spec, name))
        ]
        if spec.prepare is not None:
            facts.append(f"prepare {getattr(spec.prepare, '__qualname__', 'function')}")
        return ", ".join(facts) + ("" if spec.template else " (images only)")

    @property
    def tests_shown(self) -> str:
        """The tests, for a message."""
        more = len(self.tests) - _TESTS_SHOWN
        return ", ".join(self.tests[:_TESTS_SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass
class Needs:
    """The shapes that tests need, in their order, and the tests with unknown needs, with the reason."""

    shapes: list[Need] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    factories: int = 0

    def add(self, spec: Spec, test: str) -> None:
        """Add the VM of a test."""
        shape = _shape(spec)
        for need in self.shapes:
            if need.spec == shape:
                need.tests += [test] if test not in need.tests else []
                return
        self.shapes.append(Need(shape, [test]))


def _shape(spec: Spec) -> Spec:
    """Return a spec without the arguments that do not affect images and templates."""
    return spec.without([each.name for each in ARGUMENTS.values() if not each.template])


def collect(items: Sequence[pytest.Item]) -> Needs:
    """Return the needs of tests, without those that are skipped."""
    needs = Needs()
    wanting = [each for each in items if {*_FIXTURES, _FACTORY} & {*getattr(each, "fixturenames", ())}]
    for item, following in zip(wanting, [*wanting[1:], None], strict=True):
        needs.factories += _FACTORY in _names(item)
        if not _FIXTURES & {*_names(item)}:
            continue
        try:
            for spec in _specs(item, _base(item, following)):
                needs.add(spec, item.nodeid)
        except pytest.skip.Exception:
            continue
        except pytest.exit.Exception:
            raise
        except _OUTCOMES as error:
            needs.unknown.append((item.nodeid, f"{type(error).__name__}: {error}"))
    return needs


def _names(item: pytest.Item) -> Sequence[str]:
    found: Sequence[str] = getattr(item, "fixturenames", ())
    return found


def _base(item: Any, following: pytest.Item | None) -> list[Mapping[str, Any]]:
    """Return the arguments under a test's markers; this sets up and tears down only their two fixtures."""
    item.fixturenames, names = ["virtainer_defaults", "virtainer_prepare"], item.fixturenames
    try:
        item.ihook.pytest_runtest_setup(item=item)
        values = item.funcargs
        return argument_sources(item.config, values["virtainer_defaults"], values["virtainer_prepare"])
    finally:
        try:
            item.ihook.pytest_runtest_teardown(item=item, nextitem=following)
        finally:
            item.fixturenames = names


def _specs(item: pytest.Item, base: list[Mapping[str, Any]]) -> Iterator[Spec]:
    names = _names(item)
    if "vm" in names:
        yield merge(*base, *arguments(item))
    if "vms" in names:
        for named in by_name(item).values():
            yield merge(*base, *named)
    if "session_vm" in names:
        yield merge(*base)


def loop(session: pytest.Session) -> bool:
    """Create images and templates instead of running the tests; failures fail the run."""
    needs = collect(session.items)
    failures = list(needs.unknown)
    show = _writer(session.config)
    if needs.factories:
        show(f"{needs.factories} tests use {_FACTORY}, whose arguments are known only when they run")
    if not needs.shapes:
        show("no other test needs a VM" if needs.factories or failures else "no test needs a VM")
    else:
        failures += _make(session.config, needs.shapes)
    session.testsfailed += len(failures)
    if failures:
        reporter: Any = session.config.pluginmanager.getplugin("terminalreporter")
        reporter.section("virtainer: not created", sep="=", red=True, bold=True)
        for what, reason in failures:
            reporter.write_line(f"{what}\n{reason}\n")
    return True


def _make(config: pytest.Config, shapes: Sequence[Need]) -> list[tuple[str, str]]:
    """Create what is missing; return failures with their reasons."""
    show, failures = _writer(config), []
    try:
        with run.plain_errors():
            launcher = run.launcher(config)
    except pytest.skip.Exception as skipped:
        show(f"the tests are skipped: {skipped.msg}")
        return []
    except VirtainerError as error:
        return [("No VM can be created:", str(error))]
    for number, need in enumerate(shapes, start=1):
        began, before = time.monotonic(), len(launcher.durations)
        try:
            launcher.warm(need.spec, need.tests[0])
        except pytest.exit.Exception:
            raise
        except _OUTCOMES as error:
            failures.append((f"{need}, for {need.tests_shown}:", f"{type(error).__name__}: {error}"))
            launcher.failed.close()
            outcome = "failed"
        else:
            outcome = "created" if len(launcher.durations) > before else "ready"
        show(f"{number} of {len(shapes)}: {need}: {outcome} in {time.monotonic() - began:.1f} s")
    return failures


def _writer(config: pytest.Config) -> Any:
    return lambda line: run.note(config, line)
