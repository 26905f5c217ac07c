"""Switch the machine off and on, cleanly or not."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from typing import TYPE_CHECKING, Any

from pytest_virtainers.errors import BootTimeout, EngineError, GuestPanic, SSHError, VirtainerError, VMGone
from pytest_virtainers.support.interruptible import TimedOut
from pytest_virtainers.vm.waits import Waits

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_virtainers.ssh import client

_BOOT_ID = ["cat", "/proc/sys/kernel/random/boot_id"]
_OFF_SECONDS = 30.0
_PRESS_SECONDS = 5.0  # a power button pressed before the guest listens is lost
_RESET_SECONDS = 10.0
_END_SECONDS = 1.0  # until this side has heard that QEMU is over
_PAUSE_SECONDS = 0.1


class Power(Waits):
    """The part of the handle that has to do with power."""

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Send one command to QEMU and give what it returns.

        Commands: https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html; names of arguments with a `-` are given
        through a dict: `vm.qmp("balloon", **{"a-b": 1})`.

        Raises:
            VirtainerError: QEMU refuses; the message has its words.
            VMGone: QEMU is over, or was before its answer was out, as after `quit`.
        """
        __tracebackhide__ = True
        return self._ask_qemu((command, arguments))[0]

    def _ask_qemu(self, *commands: tuple[str, dict[str, Any]]) -> list[Any]:
        __tracebackhide__ = True
        self._check_there()
        texts = [json.dumps({"execute": command, "arguments": arguments}) for command, arguments in commands]
        try:
            code, said = self.container.run(["qmp", *texts])
        except EngineError:
            self._check_there(_END_SECONDS)
            raise
        lines = said.decode(errors="replace").strip().splitlines()
        try:
            replies = [json.loads(line) for line in lines]
        except ValueError:
            replies = []
        if not replies or code not in {0, 1}:
            self._check_there(_END_SECONDS)
            raise VirtainerError(f"{self.name}: QEMU did not answer {commands[0][0]}: {' '.join(lines)}")
        for reply, (command, _) in zip(replies, commands, strict=False):
            if "error" in reply:
                raise VirtainerError(f"{self.name}: QEMU refuses {command}: {reply['error']['desc']}")
        return [reply["return"] for reply in replies]

    def reboot(self, *, timeout: float | None = None) -> None:
        """Reboot the guest and wait until it is ready again, with a boot id other than before.

        Args:
            timeout: seconds for all of it; by default the `boot_timeout` of its marker.

        Raises:
            BootTimeout: it was not ready in time, or never went down.
        """
        __tracebackhide__ = True
        before = self.run(_BOOT_ID).stdout
        self.console.start_anew()
        with contextlib.suppress(SSHError):  # the command and the connection go down with the guest
            self.run("systemctl reboot || reboot", sudo=True, check=False)
        self._wait_for_another_boot(f"rebooting {self.name}", before, timeout)
        self._after_boot()

    def reset(self, *, timeout: float | None = None) -> None:
        """Press the reset button: what the guest has not written to its disk is lost; wait until it is ready again.

        Raises:
            BootTimeout: it was not ready in time.
        """
        __tracebackhide__ = True
        self.crash()
        self.start(timeout=timeout)

    def shutdown(self, *, timeout: float = _OFF_SECONDS) -> None:
        """Press the power button and wait until the guest has switched itself off.

        Args:
            timeout: seconds with KVM; ten times as many without.

        Raises:
            BootTimeout: it has not switched itself off in time.
            VMGone, GuestPanic: it has ended otherwise.
        """
        __tracebackhide__ = True
        self._check_alive()
        end = time.monotonic() + self.scaled(timeout)
        with self._progress.step(f"shutting down {self.name}") as step:
            pressed = float("-inf")
            while not self._is_down():
                if time.monotonic() > end:
                    raise BootTimeout(
                        f"{self.name} did not switch itself off in {self.scaled(timeout):g} s. "
                        f"The last lines of its console:\n{self.console.tail()}"
                    )
                if time.monotonic() > pressed + _PRESS_SECONDS:
                    self.qmp("system_powerdown")
                    pressed = time.monotonic()
                step.update(self.console.tail(1).removeprefix("  | "))
                time.sleep(_PAUSE_SECONDS)
        self._halt("it was shut down; vm.start() switches it on")

    def crash(self) -> None:
        """Cut the power: what the guest has not written to its disk is lost. `start` switches it on again."""
        __tracebackhide__ = True
        self.qmp("stop")
        self._halt("its power was cut; vm.start() switches it on")

    def start(self, *, timeout: float | None = None) -> None:
        """Switch on a machine that was shut down, has crashed or switched itself off, and wait until it is ready.

        Args:
            timeout: seconds; by default the `boot_timeout` of its marker.

        Raises:
            BootTimeout: it was not ready in time.
            VMGone: nothing of it is left to switch on.
        """
        __tracebackhide__ = True
        self.console.start_anew()
        self.qmp("system_reset")
        deadline = time.monotonic() + self.scaled(_RESET_SECONDS)
        while True:  # QEMU resets when it comes to it, and does not let a machine run before that
            try:
                self.qmp("cont")
                break
            except VirtainerError as error:
                if isinstance(error, (VMGone, GuestPanic)) or time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_SECONDS)
        self._wait_until_on(deadline)
        self._halted = ""
        self._wait(f"starting {self.name}", self._connect, self.spec.boot_timeout if timeout is None else timeout)
        self._after_boot()

    def pause(self) -> None:
        """Let the machine stand still: its processors do nothing, and its time does not pass."""
        __tracebackhide__ = True
        self.qmp("stop")
        self._halted = "it is paused; vm.resume() lets it go on"

    def resume(self) -> None:
        """Let a paused machine go on; its clock is behind by as long as it stood still."""
        __tracebackhide__ = True
        self.qmp("cont")
        self._halted = ""

    def _cards(self) -> frozenset[str]:
        """Name the network cards that were added."""
        return frozenset()

    def _unplug_all_but(self, cards: Collection[str], *, by_reset: bool) -> None:
        """Remove what was added, disks and other cards; by a reset if the guest cannot let go of them."""

    def _wait_until_on(self, deadline: float) -> None:
        """Wait until this side has heard that the machine runs again."""
        __tracebackhide__ = True
        while self._off and time.monotonic() < deadline:
            self._check_there()
            time.sleep(0.01)

    def _is_down(self) -> bool:
        """Tell whether the guest has switched itself off; raises when it cannot do so any more."""
        __tracebackhide__ = True
        try:
            self._check_alive()
        except VMGone:
            if not self._off:
                raise
        return self._off

    def _halt(self, why: str) -> None:
        self._halted = why
        if self._connection is not None:
            self._connection.close()

    def _wait_for_another_boot(self, title: str, before: str, timeout: float | None) -> None:
        __tracebackhide__ = True

        def connect(seconds: float) -> client.Connection:
            connection = self._connect(seconds)
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

        self._wait(title, connect, self.spec.boot_timeout if timeout is None else timeout)
