"""Time limits for provisioning a guest: by cloud-init, then by a `prepare` function.

cloud-init may run as long as it makes progress, as the time that packages take cannot be known. In all it may take
`_IN_ALL` times the limit without progress, or a loop that prints something would never end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pytest_virtainers.errors import ProvisionTimeout
from pytest_virtainers.support.interruptible import TimedOut, run_interruptible
from pytest_virtainers.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.support.progress import Step
    from pytest_virtainers.vm.machine import Machine
    from pytest_virtainers.vm.vm import VM

_IN_ALL = 10
_MOST_BYTES = 16 * 1024  # of what the guest shows at one time
_LINES_SHOWN = 8

# Prints every few seconds what cloud-init does: its stages, then the end of its output (not all users may read it).
LOOK = r"""
look() {
    cat /run/cloud-init/status.json
    printf '\001'
    log=/var/log/cloud-init-output.log
    { tail -c 2000 $log || sudo -n tail -c 2000 $log; } | tr -d '\000\001'
    printf '\000'
}
beat=0
beats() {
    sleep 0.2
    beat=$((beat + 1))
    [ $beat -lt 10 ] || { beat=0; look >&2 2>/dev/null; }
}
"""


class Limit:
    """The time that cloud-init may take, counted from now.

    Args:
        seconds: without progress; in all, without a `setting`.
        setting: the marker's argument that limits the time without progress, as messages name it.
    """

    def __init__(self, seconds: float, setting: str = "") -> None:
        self._quiet = seconds if setting else None
        self._most = seconds * _IN_ALL if setting else seconds
        self._setting = setting
        self._began = self._progressed = time.monotonic()
        self._arriving, self._seen = b"", b""

    def look(self, data: bytes) -> None:
        """Parse the next piece of what `LOOK` prints."""
        *whole, self._arriving = (self._arriving + data)[-_MOST_BYTES:].split(b"\0")
        for each in whole:
            if each != self._seen:
                self._seen, self._progressed = each, time.monotonic()

    @property
    def lines(self) -> list[str]:
        """The last lines of cloud-init's output that were read."""
        text = self._seen.rpartition(b"\1")[2].decode(errors="replace")
        return [each.rstrip() for each in text.splitlines() if each.strip()]

    def passed(self) -> str:
        """Return which limit has passed, with the time taken; empty: none."""
        now = time.monotonic()
        elapsed = f"after {now - self._began:.0f} s"
        if self._quiet is not None and now - self._progressed > self._quiet:
            quiet = f"the last {now - self._progressed:.0f} s without progress"
            return f"{elapsed}, {quiet}. The limit is {self._setting}; give it more if a step takes long"
        if now - self._began > self._most:
            return f"{elapsed}. {self._limit_in_all()}"
        return ""

    def _limit_in_all(self) -> str:
        if self._quiet is None:
            return "That is all of its time; give it more (timeout, or boot_timeout) if it is only slow"
        return f"It makes progress, but in all it may take {_IN_ALL} times the limit without: {self._setting}"

    def story(self) -> str:
        """Return the last lines of cloud-init's output, for an error message."""
        if not self.lines:
            return ""
        return "\nThe last lines of cloud-init's output:\n" + "\n".join(
            f"  | {printable(line)}" for line in self.lines[-_LINES_SHOWN:]
        )


def of(machine: Machine) -> Limit:
    """Return the limit that a VM's `provision_timeout` sets, from now on."""
    seconds = machine.spec.provision_timeout
    scaled = machine.scaled(seconds)
    return Limit(scaled, setting(seconds, scaled))


def setting(seconds: float, scaled: float) -> str:
    """Return how messages name the limit."""
    slower = f", {scaled:g} s without KVM" if scaled > seconds else ""
    return f"provision_timeout={seconds:g}{slower}"


def prepare(vm: VM, step: Step) -> None:
    """Call the VM's `prepare` function.

    It runs in a thread. If it does not end, that is abandoned, and its next use of the VM fails.

    Raises:
        ProvisionTimeout: it did not end in its time.
    """
    __tracebackhide__ = True
    function: Callable[[VM], Any] | None = vm.spec.prepare
    if function is None:
        return
    seconds = vm.spec.provision_timeout
    limit = vm.scaled(seconds) * _IN_ALL
    try:
        run_interruptible(
            lambda: function(vm), check=lambda: step.update(_last_command(vm)), deadline=time.monotonic() + limit
        )
    except TimedOut:
        name = getattr(function, "__qualname__", repr(function))
        last = _last_command(vm)
        said = f"Its last command: {last}" if last else "It has run no command"
        raise ProvisionTimeout(
            f"{vm.name}: prepare={name} did not end within {limit:.0f} s. {said}. The limit is {_IN_ALL} times "
            f"{setting(seconds, vm.scaled(seconds))}"
        ) from None


def _last_command(vm: VM) -> str:
    entries = vm.log.entries
    return f"{entries[-1].what} ({entries[-1].outcome})" if entries else ""
