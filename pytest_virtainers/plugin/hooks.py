"""The hooks of the pytest plugin.

Modules that talk to an engine or a guest are imported with the first VM, so that loading this module is cheap for
test runs without VMs.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.config.arguments import SETTINGS, SIGNATURE
from pytest_virtainers.plugin import options
from pytest_virtainers.plugin import session as run
from pytest_virtainers.plugin.fixtures import (
    session_vm,
    virtainer_defaults,
    virtainer_network,
    virtainer_prepare,
    vm,
    vm_factory,
    vms,
)
from pytest_virtainers.plugin.time_limit import pytest_timeout_cancel_timer, pytest_timeout_set_timer

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_virtainers.support.timings import Record

__all__ = [
    "pytest_timeout_cancel_timer",
    "pytest_timeout_set_timer",
    "session_vm",
    "virtainer_defaults",
    "virtainer_network",
    "virtainer_prepare",
    "vm",
    "vm_factory",
    "vms",
]  # pytest finds these fixtures and hooks here

_DURATIONS, _DAMAGE = "virtainer_durations", "virtainer_damage"
_RECORDS_KEY: pytest.StashKey[list[Record]] = pytest.StashKey()
_DAMAGE_KEY: pytest.StashKey[list[str]] = pytest.StashKey()
_FOLLOWING_KEY: pytest.StashKey[pytest.Item | None] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and ini keys."""
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and resolve the settings."""
    config.addinivalue_line("markers", f"{SIGNATURE}: the VM of a test, or several; see docs/reference.md.")
    if config.option.virtainer_warm and config.getoption("dist", "no") != "no":
        config.option.dist, config.option.tx = "no", []  # workers of pytest-xdist are only for tests
    if not options.are_given(config):
        return  # the defaults are valid
    from pytest_virtainers.errors import SpecError

    try:
        settings = run.settings(config)
    except SpecError as error:
        raise pytest.UsageError(str(error)) from None
    if settings.hold and config.getoption("dist", "no") != "no":
        raise pytest.UsageError("hold: workers of pytest-xdist have no terminal to press Enter at; run with -n0")


def pytest_report_header(config: pytest.Config) -> str:
    """Return one line with the settings of VMs, without asking the engine."""
    shown = {each.name: each.default for each in SETTINGS.values()}
    if options.are_given(config):
        settings = run.settings(config)
        shown = {**settings.shape, "engine": settings.engine}
    return f"virtainers: {shown['image']}, {shown['ram']} MiB, {shown['cpus']} CPU, engine {shown['engine']}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Check the arguments of every marker before any test runs; a wrong one is a collection error of its file.

    A `pytest.UsageError` would crash workers of pytest-xdist.
    """
    report = yield
    items = [each for each in report.result or () if isinstance(each, pytest.Item) and _is_ours(each)]
    if not items:
        return report
    from pytest_virtainers.plugin.markers import check_all

    if wrong := check_all(items):
        report.outcome, report.longrepr = "failed", "\n".join(wrong)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Create what the tests need instead of running them, with `--virtainer-warm`."""
    option = session.config.option
    in_the_way = option.collectonly or (session.testsfailed and not option.continue_on_collection_errors)
    if not option.virtainer_warm or in_the_way:
        return None
    from pytest_virtainers.plugin import warm

    return warm.loop(session)


def _is_ours(item: pytest.Item) -> bool:
    """Return whether a test may have markers to check."""
    return item.get_closest_marker("virtainer") is not None or "vms" in getattr(item, "fixturenames", ())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Store the next test for `pytest_runtest_call`."""
    item.stash[_FOLLOWING_KEY] = nextitem
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin a try of a test."""
    item.stash[run.BEGAN_KEY] = time.time()
    if run.has_launcher(item.config):
        from pytest_virtainers.plugin.reports import begin

        begin(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Prefetch the next VM, when this test has its own."""
    if run.has_launcher(item.config):
        from pytest_virtainers.plugin.allocation import prefetch

        prefetch(item, item.stash.get(_FOLLOWING_KEY, None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Collect the evidence of a failing test while its VMs exist."""
    result = yield
    if run.has_launcher(item.config):
        from pytest_virtainers.plugin.reports import report

        report(item, result)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Show how to access a failing test's VMs, before a debugger opens."""
    if isinstance(node, pytest.Item) and run.has_launcher(node.config):
        from pytest_virtainers.plugin.reports import hold

        hold(node)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run whose VMs were started from damaged files; a worker of pytest-xdist reports to the main process."""
    config: Any = session.config
    damage = config.stash.setdefault(_DAMAGE_KEY, [])
    damage += [each for each in run.damage(config) if each not in damage]
    if hasattr(config, "workeroutput"):
        config.workeroutput[_DURATIONS] = [vars(each) for each in run.durations(config)]
        config.workeroutput[_DAMAGE] = damage
    elif damage and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect timings and damage from a worker of pytest-xdist."""
    output = getattr(node, "workeroutput", {})
    if records := output.get(_DURATIONS):
        from pytest_virtainers.support.timings import Record

        node.config.stash.setdefault(_RECORDS_KEY, []).extend(Record(**each) for each in records)
    damage = node.config.stash.setdefault(_DAMAGE_KEY, [])
    damage.extend(each for each in output.get(_DAMAGE, []) if each not in damage)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show damaged files and a table of timings."""
    if damage := config.stash.get(_DAMAGE_KEY, []):
        terminalreporter.section("virtainer: damaged files in the store", sep="=", red=True, bold=True)
        for each in damage:
            terminalreporter.write_line(each)
    records = [*run.durations(config), *config.stash.get(_RECORDS_KEY, [])]
    if records and run.settings(config).durations:
        from pytest_virtainers.support.timings import table

        terminalreporter.section("virtainer durations (medians)")
        for line in table(records):
            terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End everything that the run has started."""
    if not run.has_launcher(config):
        return
    from pytest_virtainers.errors import VirtainerError

    try:
        run.close(config)
    except VirtainerError as error:  # the results are already shown; the next run sweeps what remains
        sys.stderr.write(f"virtainers: while ending the run: {error}\n")
