"""Start several VMs at the same time, each in a thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from pytest_virtainers.support.progress import LAUNCHING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.launching.failed import FailedVMs
    from pytest_virtainers.launching.starting_vms import StartingVMs
    from pytest_virtainers.support.progress import Progress
    from pytest_virtainers.vm.vm import VM


def start(
    specs: Sequence[Spec],
    launch: Callable[[Spec], VM],
    fail: Callable[[VM], object],
    *,
    starting_vms: StartingVMs,
    failed: FailedVMs,
    progress: Progress,
) -> list[VM]:
    """Start VMs and wait until all are ready; return them in the order of `specs`.

    When one fails, the others are waited for, and count as failed, too, so that there is evidence of all. When the
    wait is interrupted, those that are not ready end at once.

    Args:
        specs: specs of the VMs.
        launch: launches one.
        fail: called with each VM that is ready if another one failed.
        starting_vms: the VMs that are being brought up.
        failed: keeps VMs that do not become ready.
        progress: where the wait is shown.

    Raises:
        VirtainerError: as `launch` does, for the first that failed; the failures of others are its notes.
    """
    __tracebackhide__ = True
    title = f"starting {', '.join(spec.name for spec in specs)}"
    with (
        failed.started_together(specs),
        progress.step(title),
        ThreadPoolExecutor(len(specs), LAUNCHING) as threads,
    ):
        launches: list[Future[VM]] = []
        try:
            launches.extend(threads.submit(launch, spec) for spec in specs)
            wait(launches)
        except BaseException:
            with starting_vms.stopped():
                threads.shutdown()  # also waits for a launch that was just being submitted
            _fail_ready(launches, fail)
            raise
    failures = [error for error in (each.exception() for each in launches) if error is not None]
    if not failures:
        return [each.result() for each in launches]
    _fail_ready(launches, fail)
    for error in failures[1:]:
        failures[0].add_note(f"And: {error}")
    raise failures[0]


def _fail_ready(launches: Sequence[Future[VM]], fail: Callable[[VM], object]) -> None:
    for vm in [each.result() for each in launches if each.exception() is None]:
        fail(vm)
