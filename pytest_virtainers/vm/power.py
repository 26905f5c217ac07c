"""Switching the machine off and on, cleanly or not."""

from __future__ import annotations

import contextlib
import shlex
import time
from functools import partial
from typing import TYPE_CHECKING

from pytest_virtainers.errors import BootTimeout, GuestPanic, GuestStalled, SSHError, VirtainerError, VMGone
from pytest_virtainers.support.interruptible import TimedOut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.ssh import client
    from pytest_virtainers.vm.hotplug import Hotplug
    from pytest_virtainers.vm.machine import Machine

_BOOT_ID = ["cat", "/proc/sys/kernel/random/boot_id"]
_PRESS_SECONDS = 5.0  # a power button pressed before the guest listens is lost
_RESET_SECONDS = 10.0
_PAUSE_SECONDS = 0.1


class Power:
    """The power and reset buttons of one machine; each method is documented as the one of `VM` with its name.

    Args:
        machine: the machine.
        hotplug: its added network cards, which the guest forgets when it boots.
    """

    def __init__(self, machine: Machine, hotplug: Hotplug) -> None:
        self._machine, self._hotplug = machine, hotplug
        self._health, self._qmp = machine.health, machine.qmp

    def reboot(self, *, timeout: float | None) -> None:
        """Reboot the guest and wait until it is ready, with another boot id than before."""
        __tracebackhide__ = True
        machine = self._machine
        before = machine.commands.run(_BOOT_ID).stdout
        machine.console.forget_reports()
        with self._notes_of_crashes():
            with contextlib.suppress(SSHError):  # the command and the connection go down with the guest
                machine.commands.run("systemctl reboot || reboot", sudo=True, check=False)
            self._wait_for_boot("rebooting", timeout, partial(self._log_in_after_reboot, before))

    def _log_in_after_reboot(self, before: str, seconds: float) -> client.Connection:
        """Log in; raise `ConnectionAbortedError` while the guest still has the boot id from before."""
        connection = self._machine.ssh.log_in(seconds)
        boot_id = bytearray()
        try:
            connection.execute(
                shlex.join(_BOOT_ID),
                stdin=None,
                stdout=boot_id.extend,
                stderr=bytes,
                deadline=time.monotonic() + seconds,
                check=lambda: None,
            )
        except (SSHError, TimedOut) as error:
            connection.close()
            raise ConnectionAbortedError(f"the guest is just going down ({error})") from error
        if boot_id.decode(errors="replace") == before:
            connection.close()
            raise ConnectionAbortedError("the guest has not gone down yet")
        return connection

    def _wait_for_boot(
        self, doing: str, timeout: float | None, log_in: Callable[[float], client.Connection] | None = None
    ) -> None:
        __tracebackhide__ = True
        machine = self._machine
        seconds = machine.spec.boot_timeout if timeout is None else timeout
        try:
            machine.ssh.wait_for_boot(f"{doing} {machine.name}", seconds, log_in=log_in)
        except GuestStalled:  # seen under emulation, once in some hundred boots
            machine.progress.note(f"the kernel of {machine.name} hung while it booted: resetting it, once")
            self._press_reset()
            machine.ssh.wait_for_boot(f"{doing} {machine.name} again", seconds, log_in=log_in)
        self._hotplug.set_up_nics()

    @contextlib.contextmanager
    def _notes_of_crashes(self) -> Iterator[None]:
        """Note afterwards that QEMU crashed, and that the supervisor started it again."""
        name, supervisor = self._machine.name, self._health.supervisor
        before = len(supervisor.boot_crashes)
        try:
            yield
        finally:
            for why in supervisor.boot_crashes[before:]:
                self._machine.progress.note(f"{name}: while it booted, {why}. It was started again, once")

    def reset(self, *, timeout: float | None) -> None:
        """Press the reset button, and wait until the guest is ready."""
        __tracebackhide__ = True
        self.crash()
        self.start(timeout=timeout)

    def shutdown(self, *, timeout: float) -> None:
        """Press the power button and wait until the guest has switched itself off."""
        __tracebackhide__ = True
        name, seconds = self._machine.name, self._machine.scaled(timeout)
        self._health.check_alive()
        end = time.monotonic() + seconds
        with self._machine.progress.step(f"shutting down {name}") as step:
            pressed = float("-inf")
            while not self._is_down():
                if time.monotonic() > end:
                    raise BootTimeout(
                        f"{name} did not switch itself off in {seconds:g} s. {self._health.last_lines()}"
                    )
                if time.monotonic() > pressed + _PRESS_SECONDS:
                    self._qmp.execute("system_powerdown")
                    pressed = time.monotonic()
                step.update(self._machine.console.tail(1).removeprefix("  | "))
                time.sleep(_PAUSE_SECONDS)
        self._halt("it was shut down; vm.start() switches it on")

    def _is_down(self) -> bool:
        """Return whether the guest has switched itself off; raise if it cannot do so any more."""
        __tracebackhide__ = True
        try:
            self._health.check_alive()
        except VMGone:
            if not self._health.is_off:
                raise
        return self._health.is_off

    def crash(self) -> None:
        """Cut the power."""
        __tracebackhide__ = True
        self._qmp.execute("stop")
        self._halt("its power was cut; vm.start() switches it on")

    def _halt(self, why: str) -> None:
        self._health.halted = why
        self._machine.ssh.close()

    def start(self, *, timeout: float | None) -> None:
        """Switch the machine on, and wait until the guest is ready."""
        __tracebackhide__ = True
        with self._notes_of_crashes():
            self._press_reset()
            self._wait_for_boot("starting", timeout)

    def _press_reset(self) -> None:
        """Reset the machine and let it run."""
        __tracebackhide__ = True
        self._machine.console.forget_reports()
        self._qmp.execute("system_reset")
        deadline = time.monotonic() + self._machine.scaled(_RESET_SECONDS)
        while True:  # QEMU resets asynchronously, and does not let a machine run before that
            try:
                self._qmp.execute("cont")
                break
            except VirtainerError as error:
                if isinstance(error, (VMGone, GuestPanic)) or time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_SECONDS)
        self._health.wait_until_on(deadline)
        self._health.halted = ""

    def pause(self) -> None:
        """Stop the machine's processors and its time."""
        __tracebackhide__ = True
        self._qmp.execute("stop")
        self._health.halted = "it is paused; vm.resume() continues it"

    def resume(self) -> None:
        """Continue a paused machine."""
        __tracebackhide__ = True
        self._qmp.execute("cont")
        self._health.halted = ""
