"""Waiting for events in the guest. Timeouts are for a machine with KVM; without it, they are ten times as long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import paramiko
from paramiko.common import OPEN_FAILED_CONNECT_FAILED

from pytest_virtainers.errors import CommandTimeout, SSHError, UnitFailed
from pytest_virtainers.ssh import client
from pytest_virtainers.support.interruptible import TimedOut, run_interruptible
from pytest_virtainers.support.polling import NOTHING, Deadline
from pytest_virtainers.vm import provision_limit

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence

    from pytest_virtainers.vm.machine import Machine
    from pytest_virtainers.vm.result import Result

T = TypeVar("T")


class Waits:
    """Waits for events in one machine; each method is documented as the one of `VM` with its name."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._commands = machine, machine.commands

    def wait_for(self, condition: Callable[[], T], *, timeout: float, what: str = "") -> T:
        """Call `condition` until its result is true; return that."""
        __tracebackhide__ = True
        deadline = self._deadline(what or getattr(condition, "__name__", repr(condition)), timeout, "on")

        def attempt() -> T | None:
            __tracebackhide__ = True
            result = condition()
            deadline.seen = repr(result)
            return result or None

        return deadline.poll(attempt)

    def _deadline(self, what: str, timeout: float, where: str = "of") -> Deadline:
        return Deadline(f"{what} {where} {self._machine.name}", self._machine.scaled(timeout))

    def wait_until(
        self, end: str, command: str | Sequence[str], *, timeout: float, arguments: dict[str, Any]
    ) -> Result:
        """Run a command until it ends with `end`, which is `success` or `failure`; return its last result."""
        __tracebackhide__ = True
        deadline = self._deadline(f"the {end} of {command!r}", timeout, "on")

        def attempt() -> Result | None:
            __tracebackhide__ = True
            result = self._try(command, deadline, **arguments)
            if result is None:
                return None
            deadline.seen = f"exit code {result.exit_code}\n{result.streams()}"
            return result if result.ok == (end == "success") else None

        return deadline.poll(attempt)

    def _try(self, command: str | Sequence[str], deadline: Deadline, **arguments: Any) -> Result | None:
        """Run a command in the remaining time; return `None` if it did not finish."""
        __tracebackhide__ = True
        try:
            return self._commands.run(command, check=False, timeout=deadline.remaining, **arguments)
        except CommandTimeout as error:
            if deadline.seen == NOTHING:  # else an earlier try has seen more
                deadline.seen = str(error)
            return None

    def wait_for_unit(self, unit: str, *, timeout: float) -> None:
        """Wait until a systemd unit is active."""
        __tracebackhide__ = True
        deadline = self._deadline(f"unit {unit}", timeout)
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
                    f"unit {unit} of {self._machine.name} has failed ({deadline.seen}). The end of its journal:\n"
                    + self._journal_of(unit, deadline.remaining)
                )
            return state.get("ActiveState") == "active" or None

        deadline.poll(attempt)

    def _journal_of(self, unit: str, seconds: float) -> str:
        __tracebackhide__ = True
        read = ["journalctl", "--no-pager", "-o", "short", "-n", "20", "-u", unit]
        lines = self._commands.run(read, sudo=self._needs_sudo, check=False, timeout=max(5.0, seconds)).stdout
        return "\n".join(f"  | {line}" for line in lines.splitlines())

    @property
    def _needs_sudo(self) -> bool:
        return self._machine.user != "root"

    def wait_for_port(self, port: int, *, host: str, timeout: float, is_open: bool) -> None:
        """Wait until a TCP port, as the guest reaches it, is open or closed."""
        __tracebackhide__ = True
        what = "port" if is_open else "the end of port"
        deadline = self._deadline(f"{what} {port} of {host}", timeout, "on")

        def attempt() -> bool | None:
            __tracebackhide__ = True
            return self._is_open(host, port, deadline) is is_open or None

        deadline.poll(attempt)

    def _is_open(self, host: str, port: int, deadline: Deadline) -> bool | None:
        """Connect from the guest's sshd, which needs no program in the guest; return `None` if it was not asked."""
        __tracebackhide__ = True
        machine = self._machine
        connection = machine.ssh.connected()
        try:
            channel = run_interruptible(
                lambda: connection.transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0)),
                check=machine.health.check_alive,
                deadline=time.monotonic() + deadline.remaining,
                unwanted=lambda late: late.close(),
            )
        except paramiko.ChannelException as refusal:
            if refusal.code != OPEN_FAILED_CONNECT_FAILED:  # it has not even tried
                raise SSHError(
                    f"{machine.name}: its sshd refuses to connect to port {port} of {host} "
                    f"({refusal.text or refusal}); sshd_config's AllowTcpForwarding and PermitOpen may forbid it"
                ) from None
            deadline.seen = f"no connection ({refusal.text or refusal})"
            return False
        except TimedOut:
            machine.ssh.check_answer(connection)
            deadline.seen = "no answer"
            return False
        except client.FAILURES as error:
            deadline.seen = f"a broken SSH connection ({error or type(error).__name__})"
            return None
        channel.close()
        deadline.seen = "a connection"
        return True

    def wait_for_file(self, path: str, *, timeout: float) -> None:
        """Wait until a file or folder exists."""
        __tracebackhide__ = True
        deadline = self._deadline(f"file {path}", timeout)
        deadline.seen = "no such file"
        look = ["test", "-e", path]

        def attempt() -> bool | None:
            __tracebackhide__ = True
            found = self._try(look, deadline, sudo=self._needs_sudo)
            return (found is not None and found.ok) or None

        deadline.poll(attempt)

    def wait_for_console(self, pattern: str, *, timeout: float) -> re.Match[str]:
        """Wait until the serial console shows a regular expression; return the match."""
        __tracebackhide__ = True
        console = self._machine.console
        deadline = self._deadline(f"{pattern!r} on the console", timeout)
        search = console.search(pattern)

        def attempt() -> re.Match[str] | None:
            __tracebackhide__ = True
            deadline.seen = f"\n{console.tail()}"
            found = search.look()
            if found is None:
                self._machine.health.check_unless_halted()
            return found

        return deadline.poll(attempt)

    def wait_for_cloud_init(self, *, timeout: float) -> None:
        """Wait until cloud-init has finished."""
        __tracebackhide__ = True
        self._machine.ssh.wait_for_cloud_init(provision_limit.Limit(self._machine.scaled(timeout)))
