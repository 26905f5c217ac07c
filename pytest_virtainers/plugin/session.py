"""What one pytest process keeps: its settings, and its launcher once a VM was requested."""

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
    """Return the settings of this run; they are read when they are first needed.

    Raises:
        SpecError: a value is not allowed; the message names its source.
    """
    if SETTINGS_KEY not in config.stash:
        from pytest_virtainers.config.settings import resolve

        config.stash[SETTINGS_KEY] = resolve(options.sources(config))
    return config.stash[SETTINGS_KEY]


def launcher(config: pytest.Config) -> Launcher:
    """Return the process's launcher; the first call finds the engine.

    Raises:
        EngineNotFound: none answers (a skip with `missing=skip`); the second call does not look again.
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
    """Return whether this process, or the one that forked it, has asked for a VM."""
    return _LAUNCHER_KEY in config.stash


def present(config: pytest.Config) -> Launcher | None:
    """Return the process's launcher; `None` if no VM was requested, or in a forked child, whose parent has it."""
    found = config.stash.get(_LAUNCHER_KEY, None)
    return found if found is not None and found.is_ours else None


def in_debugger(config: pytest.Config) -> bool:
    """Tell whether failing tests are looked at in a debugger."""
    return bool(config.getoption("usepdb", False))


def prefetch(config: pytest.Config, spec: Spec | None, node_id: str) -> None:
    """Make the clone that the test `node_id` will ask for ready in the background; None: no test wants one."""
    if _LAUNCHER_KEY in config.stash and settings(config).prefetch:
        config.stash[_LAUNCHER_KEY].prefetch(spec, node_id)


def durations(config: pytest.Config) -> list[Record]:
    """Give where the seconds of this process's launches went."""
    return config.stash[_LAUNCHER_KEY].durations if _LAUNCHER_KEY in config.stash else []


def damage(config: pytest.Config) -> list[str]:
    """Return what turned out to be damaged in the store after VMs of this process were started from it."""
    if _LAUNCHER_KEY not in config.stash:
        return []
    from pytest_virtainers.errors import VirtainerError

    with contextlib.suppress(VirtainerError):  # what cannot be removed now is found again
        config.stash[_LAUNCHER_KEY].look_for_damage()
    return config.stash[_LAUNCHER_KEY].damage.found


def close(config: pytest.Config) -> None:
    """End all that the process has started."""
    if _LAUNCHER_KEY in config.stash:
        config.stash[_LAUNCHER_KEY].close()
        del config.stash[_LAUNCHER_KEY]


def note(config: pytest.Config, line: str) -> None:
    """Show a line that the person asked for: also under `-q`, unless it is given twice."""
    _progress(config, quiet=-1).note(line)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Let a `VirtainerError` speak for itself: its message says what its causes and our frames would."""
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
        # pytest's capturing is not made for threads. But while VMs start together, the main thread only waits for
        # them; the line that changes is its own.
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
    """Show what commands print, if that is wanted: on the terminal even while pytest captures."""
    if config.getoption("capture", "no") == "no":
        return lambda text: print(text, end="", flush=True)
    if not settings(config).echo:
        return None
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        terminal = os.dup(_STDERR)  # processes are shown by threads, for which pytest's capturing is not made
    return lambda text: os.write(terminal, text.encode())


def _end_on_sigterm() -> None:
    """Make SIGTERM end the run as Ctrl-C does, so that everything is cleaned up; by default it ends us at once."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _end_with_parent(config: pytest.Config) -> None:
    """Make the end of pytest-xdist's main process, however it ends, the end of this worker, too (Linux).

    pytest-xdist would let a worker finish its test, and end it without a word some seconds later.
    """
    parent = os.getppid()

    def end(number: int, frame: object) -> None:
        if os.getppid() == parent:
            _exit(number, frame)
        signal.alarm(_LAST_SECONDS)  # nobody is there to end us, if we should be stuck
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
