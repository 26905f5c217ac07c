"""State of a pytest process: its settings, and its launcher of VMs since the first request."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_virtainers.plugin import options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.errors import EngineNotFound
    from pytest_virtainers.launching.launcher import Launcher
    from pytest_virtainers.support.progress import Progress
    from pytest_virtainers.support.timings import Record

_LAST_SECONDS = 4
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STDERR = 2

SETTINGS_KEY: pytest.StashKey[Settings] = pytest.StashKey()
BEGAN_KEY: pytest.StashKey[float] = pytest.StashKey()
"""When a try of a test began, in seconds since 1970."""
_LAUNCHER_KEY: pytest.StashKey[Launcher] = pytest.StashKey()
_NO_ENGINE_KEY: pytest.StashKey[EngineNotFound] = pytest.StashKey()


def settings(config: pytest.Config) -> Settings:
    """Return the settings of this run, read at the first call.

    Raises:
        SpecError: a value is not valid; the message names its source.
    """
    if SETTINGS_KEY not in config.stash:
        from pytest_virtainers.config.settings import resolve

        config.stash[SETTINGS_KEY] = resolve(options.sources(config))
    return config.stash[SETTINGS_KEY]


def launcher(config: pytest.Config) -> Launcher:
    """Return the launcher of this process; the first call looks for the engine.

    Raises:
        EngineNotFound: no engine answers (a skip with `missing=skip`); further calls do not look again.
    """
    __tracebackhide__ = True
    from pytest_virtainers.errors import EngineNotFound

    wanted = settings(config)
    try:
        if _NO_ENGINE_KEY in config.stash:
            raise config.stash[_NO_ENGINE_KEY]
        if _LAUNCHER_KEY not in config.stash:
            from pytest_virtainers.launching.build import build_launcher
            from pytest_virtainers.plugin import time_limit

            worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
            looks = wanted.keep != "never" or wanted.hold or in_debugger(config)
            progress, test_run = _progress(config), getattr(config, "workerinput", {}).get("testrunuid", "")
            config.stash[_LAUNCHER_KEY] = build_launcher(
                wanted,
                progress,
                worker=worker,
                test_run=test_run,
                keep_failed=looks,
                without_time_limit=lambda: time_limit.suspended(config, progress.note),
                echo=_echo(config),
            )
            _end_on_sigterm()
            if hasattr(config, "workerinput"):
                _end_with_parent(config)
    except EngineNotFound as error:
        config.stash[_NO_ENGINE_KEY] = error
        if wanted.missing == "skip":
            pytest.skip(str(error))
        raise
    return config.stash[_LAUNCHER_KEY]


def has_launcher(config: pytest.Config) -> bool:
    """Return whether this process, or the one that forked it, has requested a VM."""
    return _LAUNCHER_KEY in config.stash


def present(config: pytest.Config) -> Launcher | None:
    """Return the launcher, or `None` if no VM was requested, or in a forked child of the process that has it."""
    found = config.stash.get(_LAUNCHER_KEY, None)
    return found if found is not None and found.is_ours else None


def in_debugger(config: pytest.Config) -> bool:
    """Return whether pytest opens a debugger for failing tests."""
    return bool(config.getoption("usepdb", False))


def prefetch(config: pytest.Config, spec: Spec | None, node_id: str) -> None:
    """Start the clone that the test `node_id` will request in the background; `None` if no test needs one."""
    if _LAUNCHER_KEY in config.stash and settings(config).prefetch:
        config.stash[_LAUNCHER_KEY].prefetch(spec, node_id)


def durations(config: pytest.Config) -> list[Record]:
    """Return the timings of this process's launches."""
    return config.stash[_LAUNCHER_KEY].durations if _LAUNCHER_KEY in config.stash else []


def damage(config: pytest.Config) -> list[str]:
    """Return messages about damaged files in the store from which this process has started VMs."""
    if _LAUNCHER_KEY not in config.stash:
        return []
    from pytest_virtainers.errors import VirtainerError

    with contextlib.suppress(VirtainerError):  # files that cannot be removed are reported again
        config.stash[_LAUNCHER_KEY].look_for_damage()
    return config.stash[_LAUNCHER_KEY].damage.found


def close(config: pytest.Config) -> None:
    """End everything that the process has started."""
    if _LAUNCHER_KEY in config.stash:
        config.stash[_LAUNCHER_KEY].close()
        del config.stash[_LAUNCHER_KEY]


def note(config: pytest.Config, line: str) -> None:
    """Show a line that the user requested; it is shown with `-q`, but not with `-qq`."""
    _progress(config, quiet=-1).note(line)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Show a `VirtainerError` without its causes and the plugin's frames, as its message contains them."""
    __tracebackhide__ = True
    from pytest_virtainers.errors import VirtainerError

    try:
        yield
    except VirtainerError as error:
        raise error.with_traceback(None) from None


def _progress(config: pytest.Config, quiet: int = 0) -> Progress:
    """Show progress on the terminal even while pytest captures; nothing when pytest is quieter than `quiet`."""
    from pytest_virtainers.support.progress import LAUNCHING, SILENT, Progress, fitted

    if config.get_verbosity() < quiet:
        return SILENT
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")

    one_at_a_time = threading.Lock()

    def write(text: str) -> None:
        thread = threading.current_thread()
        # pytest's capturing is not thread-safe. But while VMs start together, the main thread only waits for their
        # threads. Only the main thread redraws lines.
        of_launch = thread.name.startswith(LAUNCHING) and text.endswith("\n")
        if thread is not threading.main_thread() and not of_launch:
            return
        with one_at_a_time, capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            if reporter is None:  # a worker of pytest-xdist, whose stdout belongs to its protocol
                sys.stderr.write(text)
                sys.stderr.flush()
            else:
                reporter.ensure_newline()
                reporter.write(fitted(text, shutil.get_terminal_size((0, 0)).columns), flush=True)

    return Progress(write, live=reporter is not None and reporter.isatty)


def _echo(config: pytest.Config) -> Callable[[str], object] | None:
    """Return a function that shows the output of commands on the terminal, or `None` if it is not requested."""
    if config.getoption("capture", "no") == "no":
        return lambda text: print(text, end="", flush=True)
    if not settings(config).echo:
        return None
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        terminal = os.dup(_STDERR)  # threads write to it, and pytest's capturing is not thread-safe
    return lambda text: os.write(terminal, text.encode())


def _end_on_sigterm() -> None:
    """Make SIGTERM end the run like Ctrl-C, with a cleanup; its default would end the process immediately."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _end_with_parent(config: pytest.Config) -> None:
    """End this worker when the main process of pytest-xdist ends in any way (Linux).

    pytest-xdist would let a worker finish its test, and kill it some seconds later.
    """
    parent = os.getppid()

    def end(number: int, frame: object) -> None:
        if os.getppid() == parent:
            _exit(number, frame)
        signal.alarm(_LAST_SECONDS)  # a limit for the cleanup
        try:
            close(config)
        finally:
            os._exit(128 + number)

    if sys.platform == "linux":
        import ctypes

        signal.signal(signal.SIGTERM, end)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit(number: int, _frame: object) -> NoReturn:
    pytest.exit(f"terminated by {signal.Signals(number).name}", returncode=128 + number)
