"""Whether a machine still runs properly, and if not, why: by its container, its supervisor and its serial console."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pytest_virtainers.errors import (
    BadTemplate,
    BootTimeout,
    DiskFull,
    GuestPanic,
    GuestStalled,
    QEMUCrashed,
    VirtainerError,
    VMGone,
)
from pytest_virtainers.support import timings
from pytest_virtainers.support.runtime_modules import protocol
from pytest_virtainers.vm.console import Console
from pytest_virtainers.vm.supervisor_events import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.engine.base import Container

_SLOWER_WITHOUT_KVM = 10
SILENCE_SECONDS = 5.0
"""A guest that does not answer for so many seconds hangs; with KVM."""
# Emulated on a busy host, the first interrupts come too late: the next boot is likely to do better, as after a hang.
_NO_TIMER = "IO-APIC + timer doesn't work"
_LINES = 30  # of the console, where the guest's kernel has something to report
_POLL_SECONDS = 0.01


class Health:
    """The state of one machine.

    Attributes:
        console: the serial console.
        supervisor: what the supervisor in the container has reported.
        halted: why a machine without a fault does not run: it was shut down, crashed or paused; empty while it runs.
        silent: whether the guest did not answer when it was last asked.
    """

    def __init__(self, name: str, container: Container) -> None:
        self._name, self._container = name, container
        self.supervisor = Supervisor(container.stderr)
        self.console = Console(container, name, check=self.check_unless_halted, scaled=self.scaled)
        self.halted = ""
        self.silent = False

    def disown(self, nothing: Any) -> None:
        """Leave console and supervisor to a forked child's parent; `nothing` refuses any use."""
        self._container = self.supervisor = self.console = nothing

    def scaled(self, seconds: float) -> float:
        """Return how long something may take here that takes `seconds` with KVM: ten times as long without."""
        return seconds if self.supervisor.accel == "kvm" else seconds * _SLOWER_WITHOUT_KVM

    @property
    def runs(self) -> bool:
        """Whether the machine runs, as far as this side knows: not ended, not halted, no kernel panic."""
        try:
            self.check_alive()
        except VirtainerError:
            return False
        return True

    @property
    def is_off(self) -> bool:
        """Whether the guest switched itself off and was not started again."""
        return self.supervisor.off

    def exit_reason(self, grace_seconds: float = 0.0) -> str:
        """Return why the container or QEMU ended; empty while both run.

        Args:
            grace_seconds: wait so long for an end that is due.
        """
        if self._container.wait(grace_seconds):
            return self.supervisor.last_words or "its container printed nothing"
        return self.supervisor.over

    def check_qemu(self, grace_seconds: float = 0.0) -> None:
        """Raise if QEMU has ended; it still answers while its guest is halted, off or hangs."""
        __tracebackhide__ = True
        if self.exit_reason(grace_seconds):
            self.check_alive()

    def check_unless_halted(self) -> None:
        """Raise if the machine does not run, unless this side has halted it, and may resume it."""
        __tracebackhide__ = True
        if not self.halted:
            self.check_alive()

    def check_not_halted(self) -> None:
        """Raise if this side has halted the machine."""
        __tracebackhide__ = True
        if self.halted:
            self.check_alive()

    def check_alive(self, grace_seconds: float = 0.0) -> None:
        """Raise if the machine does not run: it has ended, was halted, hangs, or its kernel panicked.

        Args:
            grace_seconds: wait so long for an end that is due.
        """
        __tracebackhide__ = True
        panic = self.console.panic()
        if panic is not None:
            kind = GuestStalled if _NO_TIMER in panic else GuestPanic
            raise kind(f"{self._name}: {panic}. {self.last_lines(_LINES)}")
        why = self.exit_reason(grace_seconds)
        if not why and self.halted:
            raise VMGone(f"{self._name} does not run: {self.halted}")
        if not why and self.is_off:
            why = "the guest switched itself off"
        if why:
            raise self._kind_of_end()(f"{self._name} has ended: {why}. {self.last_lines()}")
        if cause := self.supervisor.disk_failure:
            raise DiskFull(
                f"{self._name}: QEMU has paused the VM, as its disk could not be written: {cause}. "
                "Free space on the engine's disk, or let the VM write less"
            )
        if self.console.stalled():
            raise GuestStalled(
                f"{self._name}: the guest's kernel hangs (it reports one RCU stall again and again). "
                f"{self.last_lines(_LINES)}"
            )

    def _kind_of_end(self) -> type[VMGone]:
        if self.supervisor.reason == protocol.Reason.TEMPLATE.word:
            return BadTemplate
        return QEMUCrashed if self.supervisor.crashed else VMGone

    def stalled(self) -> GuestStalled:
        """Note that the guest did not answer; return the error that reports it."""
        self.silent = True
        return GuestStalled(
            f"{self._name}: the guest hangs: it has not answered for {self.scaled(SILENCE_SECONDS):g} s. "
            f"{self.last_lines(_LINES)}"
        )

    def last_lines(self, lines: int = 15) -> str:
        """Return the end of the console as a sentence for an error message."""
        return f"The last lines of its console:\n{self.console.tail(lines)}"

    def wait_until_reported(self, what: str, fact: Callable[[], bool], deadline: float) -> None:
        """Wait until the supervisor has reported an event that makes `fact` true.

        Args:
            what: the name of the event, for messages.
            fact: looks at `supervisor`.
            deadline: on `time.monotonic()`.

        Raises:
            BootTimeout: it was not reported in time.
        """
        __tracebackhide__ = True
        with timings.phase(f"wait: {what}"):
            reported = self.supervisor.wait_for(fact, max(0.0, deadline - time.monotonic()))
        if not reported:
            self.check_alive()
            raise BootTimeout(
                f"{self._name}: the supervisor did not report {what} in time. It reported:\n{self.supervisor.words}"
            )

    def wait_until_on(self, deadline: float) -> None:
        """Wait until the supervisor has reported that the machine runs again; `deadline` is on `time.monotonic()`."""
        __tracebackhide__ = True
        while self.is_off and time.monotonic() < deadline:
            self.check_qemu()
            time.sleep(_POLL_SECONDS)
