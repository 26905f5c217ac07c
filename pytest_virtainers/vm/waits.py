"""Wait for something in the guest. Times are those of a machine with KVM; without, there is ten times as much."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import paramiko
from paramiko.common import OPEN_FAILED_CONNECT_FAILED

from pytest_virtainers.errors import CommandTimeout, SSHError, UnitFailed
from pytest_virtainers.ssh import client
from pytest_virtainers.support.deadline import NOTHING, Deadline
from pytest_virtainers.support.interruptible import TimedOut, patiently
from pytest_virtainers.vm import provision_limit, readiness
from pytest_virtainers.vm.commands import Commands
from pytest_virtainers.vm.machine import SILENCE_SECONDS

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence

    from pytest_virtainers.vm.result import Result

T = TypeVar("T")
_SECONDS = 30.0


class Waits(Commands):
    """The part of the handle that waits. All raise `WaitTimeout`, an `AssertionError`, when the time is up."""

    def wait_for(self, condition: Callable[[], T], *, timeout: float = _SECONDS, what: str = "") -> T:
        """Call `condition` until it gives something true, and give that.

        Args:
            condition: its exceptions end the wait.
            timeout: seconds with KVM; ten times as many without.
            what: for the message; by default the function's name.
        """
        __tracebackhide__ = True
        name = what or getattr(condition, "__name__", repr(condition))
        deadline = Deadline(f"{name} on {self.name}", self.scaled(timeout))

        def attempt() -> T | None:
            __tracebackhide__ = True
            result = condition()
            deadline.seen = repr(result)
            return result or None

        return deadline.poll(attempt)

    def wait_until_succeeds(
        self, command: str | Sequence[str], *, timeout: float = _SECONDS, **arguments: Any
    ) -> Result:
        """Run a command (with `run`'s arguments but `check`) until its exit code is 0; give its last result."""
        __tracebackhide__ = True
        return self._until(command, "success", timeout, arguments)

    def wait_until_fails(
        self, command: str | Sequence[str], *, timeout: float = _SECONDS, **arguments: Any
    ) -> Result:
        """Run a command (with `run`'s arguments but `check`) until its exit code is not 0; give its last result."""
        __tracebackhide__ = True
        return self._until(command, "failure", timeout, arguments)

    def _until(self, command: str | Sequence[str], end: str, timeout: float, arguments: dict[str, Any]) -> Result:
        __tracebackhide__ = True
        deadline = Deadline(f"the {end} of {command!r} on {self.name}", self.scaled(timeout))

        def attempt() -> Result | None:
            __tracebackhide__ = True
            result = self._try(command, deadline, **arguments)
            if result is None:
                return None
            deadline.seen = f"exit code {result.exit_code}\n{result.streams()}"
            return result if result.ok == (end == "success") else None

        return deadline.poll(attempt)

    def _try(self, command: str | Sequence[str], deadline: Deadline, **arguments: Any) -> Result | None:
        """Run a command for as long as there is time; None when that was not enough for it."""
        __tracebackhide__ = True
        try:
            return self.run(command, check=False, timeout=deadline.remaining, **arguments)
        except CommandTimeout as error:
            if deadline.seen == NOTHING:  # else an earlier try has seen more
                deadline.seen = str(error)
            return None

    def wait_for_unit(self, unit: str, *, timeout: float = _SECONDS) -> None:
        """Wait until a systemd unit is active.

        Raises:
            UnitFailed: it has failed; the message has the end of its journal. This is told at once.
            WaitTimeout: it has not become active in time.
        """
        __tracebackhide__ = True
        deadline = Deadline(f"unit {unit} of {self.name}", self.scaled(timeout))
        ask = ["systemctl", "show", "-p", "LoadState,ActiveState,SubState,Result", "--", unit]

        def attempt() -> bool | None:
            __tracebackhide__ = True
            answer = self._try(ask, deadline)
            if answer is None:
                return None
            state = dict(row.split("=", 1) for row in answer.stdout.splitlines() if "=" in row)
            deadline.seen = ", ".join(f"{name} {value}" for name, value in state.items())
            if state.get("ActiveState") == "failed":
                raise UnitFailed(
                    f"unit {unit} of {self.name} has failed ({deadline.seen}). The end of its journal:\n"
                    + self._journal_of(unit, deadline.remaining)
                )
            return state.get("ActiveState") == "active" or None

        deadline.poll(attempt)

    def _journal_of(self, unit: str, seconds: float) -> str:
        __tracebackhide__ = True
        read = ["journalctl", "--no-pager", "-o", "short", "-n", "20", "-u", unit]
        lines = self.run(read, sudo=self.user != "root", check=False, timeout=max(5.0, seconds)).stdout
        return "\n".join(f"  | {line}" for line in lines.splitlines())

    def wait_for_port(self, port: int, *, host: str = "localhost", timeout: float = _SECONDS) -> None:
        """Wait until a TCP connection to a port can be made from within the guest.

        Raises:
            SSHError: the guest's sshd does not try, for instance because it forbids forwarding.
            GuestStalled: the guest does not answer any more.
        """
        __tracebackhide__ = True
        deadline = Deadline(f"port {port} of {host} on {self.name}", self.scaled(timeout))
        self._poll_port(host, port, deadline, wanted=True)

    def wait_for_closed_port(self, port: int, *, host: str = "localhost", timeout: float = _SECONDS) -> None:
        """Wait until no TCP connection to a port can be made from within the guest; raises as `wait_for_port`."""
        __tracebackhide__ = True
        deadline = Deadline(f"the end of port {port} of {host} on {self.name}", self.scaled(timeout))
        self._poll_port(host, port, deadline, wanted=False)

    def _poll_port(self, host: str, port: int, deadline: Deadline, *, wanted: bool) -> None:
        __tracebackhide__ = True

        def attempt() -> bool | None:
            __tracebackhide__ = True
            return self._is_open(host, port, deadline) is wanted or None

        deadline.poll(attempt)

    def _is_open(self, host: str, port: int, deadline: Deadline) -> bool | None:
        """Let the guest's sshd try: that needs no program in the guest. None: it could not be asked."""
        __tracebackhide__ = True
        connection = self._connected()
        try:
            channel = patiently(
                lambda: connection.transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0)),
                check=self._check_alive,
                deadline=time.monotonic() + deadline.remaining,
                unwanted=lambda late: late.close(),
            )
        except paramiko.ChannelException as refusal:
            if refusal.code != OPEN_FAILED_CONNECT_FAILED:  # it has not even tried
                raise SSHError(
                    f"{self.name}: its sshd does not try to reach port {port} of {host} for us "
                    f"({refusal.text or refusal}); sshd_config's AllowTcpForwarding and PermitOpen may forbid it"
                ) from None
            deadline.seen = f"no connection ({refusal.text or refusal})"
            return False
        except TimedOut:
            if not connection.answers(self.scaled(SILENCE_SECONDS)):
                raise self._hangs() from None
            deadline.seen = "no answer"
            return False
        except client.FAILURES as error:
            deadline.seen = f"a broken SSH connection ({error or type(error).__name__})"
            return None
        channel.close()
        deadline.seen = "a connection"
        return True

    def wait_for_file(self, path: str, *, timeout: float = _SECONDS) -> None:
        """Wait until a file or folder is there (a symbolic link to nowhere is not)."""
        __tracebackhide__ = True
        deadline = Deadline(f"file {path} of {self.name}", self.scaled(timeout))
        deadline.seen = "no such file"
        look = ["test", "-e", path]

        def attempt() -> bool | None:
            __tracebackhide__ = True
            found = self._try(look, deadline, sudo=self.user != "root")
            return (found is not None and found.ok) or None

        deadline.poll(attempt)

    def wait_for_console(self, pattern: str, *, timeout: float = _SECONDS) -> re.Match[str]:
        """Wait until the serial console shows a regular expression, from its first line on; give the match."""
        __tracebackhide__ = True
        deadline = Deadline(f"{pattern!r} on the console of {self.name}", self.scaled(timeout))
        search = self.console.search(pattern)

        def attempt() -> re.Match[str] | None:
            __tracebackhide__ = True
            deadline.seen = f"\n{self.console.tail()}"
            found = search.look()
            if found is None:
                self._check_going()
            return found

        return deadline.poll(attempt)

    def wait_for_cloud_init(self, *, timeout: float = _SECONDS) -> None:
        """Wait until cloud-init has finished, for instance after a reboot with changed data.

        Raises:
            BootTimeout: not in time.
            BootError: it reports errors; the message has them.
        """
        __tracebackhide__ = True
        machine = readiness.Machine(self.name, self.console, self._check_alive)
        readiness.wait_for_cloud_init(machine, self._connected(), provision_limit.Limit(self.scaled(timeout)))
