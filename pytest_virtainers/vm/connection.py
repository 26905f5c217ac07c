"""The SSH connection to one guest: made again when it breaks, and watched for a guest that stops answering."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import IO, TYPE_CHECKING

from pytest_virtainers.errors import BootError, BootTimeout, EngineError, SSHError
from pytest_virtainers.ssh import client, resumable
from pytest_virtainers.ssh.keepalive import Keepalive
from pytest_virtainers.support import timings
from pytest_virtainers.support.interruptible import POLL_SECONDS
from pytest_virtainers.vm import firmware, provision_limit, readiness
from pytest_virtainers.vm.health import SILENCE_SECONDS
from pytest_virtainers.vm.kernel import fast_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.vm.machine import Machine

_RECONNECT_SECONDS = 20.0
# After a break, a new connection is tried until the console has been silent for so long; but no longer than systemd
# waits for a unit that does not stop (DefaultTimeoutStopSec, 90 s).
_BREAK_SECONDS, _SHUTDOWN_SECONDS = 1.5, 90.0
_MOMENT_SECONDS = 0.25  # in which the end of a container is noticed
# How often a guest is asked whether it answers; with KVM.
_KEEPALIVE_SECONDS = 1.0
# Much sooner, the engine is asked whether the container is still on its network; without KVM just as soon.
_FIRST_KEEPALIVE_SECONDS, _MAX_KEEPALIVE_SECONDS, _STALE_SECONDS = 1.0, 5.0, 1.0
_SESSION_SECONDS = 10.0
_FREEZE_SECONDS = 10.0
_CLOSE_POLL_SECONDS = 0.02


class SSHConnection:
    """The connection of one machine, which all its threads share.

    Attributes:
        current: the connection that was made last; it may have broken.
        reversed_ports: ports of the guest on which its sshd listens, each with the local port that it leads to and
            an event that is set at its end.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine, self._health = machine, machine.health
        self.current: client.Connection | None = None
        self.reversed_ports: dict[int, tuple[int, threading.Event]] = {}
        self._connecting = threading.RLock()  # held by the thread that connects; others may notice the break, too

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as this side knows."""
        return self.current is not None and self.current.alive

    def close(self) -> None:
        """Close the connection; the next use connects again."""
        if self.current is not None:
            self.current.close()

    # Connecting

    def log_in(self, seconds: float) -> client.Connection:
        """Return a new connection, made within so many seconds; raises `EngineError`, or one of `client.FAILURES`."""
        machine, deadline = self._machine, time.monotonic() + seconds
        with timings.phase("connect"):
            sock = machine.endpoint.dial(seconds)
        return client.log_in(sock, machine.user, machine.keys, deadline - time.monotonic())

    def connected(self) -> client.Connection:
        """Return the connection; one that broke (sshd restarted, the network was down) is made again.

        Raises:
            SSHError: there was no connection yet, or it cannot be made again.
            VMGone, GuestPanic: the machine does not run.
        """
        __tracebackhide__ = True
        self._health.check_alive()
        if self.current is None:
            raise SSHError(f"{self._machine.name} has no SSH connection yet")
        if not self.current.alive:
            self._acquire()
            try:
                if not self.current.alive:  # else another thread has connected in between
                    self._reconnect()
            finally:
                self._connecting.release()
        return self.current

    def _reconnect(self) -> None:
        __tracebackhide__ = True
        name = self._machine.name
        try:
            self.establish(f"connecting to {name} again", self._machine.scaled(2.0))
        except BootTimeout as error:
            raise SSHError(str(error).partition("\nIf it is only slow")[0]) from error

    def _acquire(self) -> None:
        """Acquire the lock of the thread that connects; raise if the machine ends before that."""
        __tracebackhide__ = True
        while not self._connecting.acquire(timeout=POLL_SECONDS):
            self._health.check_alive()

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """Close the connection, and let no other thread connect during the block; the machine may be off."""
        __tracebackhide__ = True
        while not self._connecting.acquire(timeout=POLL_SECONDS):
            self._health.check_qemu()
        try:
            self.close()
            yield
        finally:
            self._connecting.release()

    def establish(
        self,
        title: str,
        timeout: float,
        *,
        log_in: Callable[[float], client.Connection] | None = None,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        """Log in to a guest that has booted already, then call `settle`.

        Args:
            title: of the step that is shown.
            timeout: seconds for the login.
            log_in: logs in within so many seconds; by default the method `log_in`.
            settle: waits for what comes after the login.

        Raises:
            BootTimeout: there was no login in time.
            SSHError: another host key was shown.
            VMGone, GuestPanic: the machine does not run.
        """
        __tracebackhide__ = True
        self._acquire()
        try:
            self.close()
            with self._machine.progress.step(title) as step:

                def check() -> None:
                    __tracebackhide__ = True
                    self._health.check_alive()
                    step.update(self._last_line())

                self.current = readiness.wait_for_login(self._target(check), log_in or self.log_in, timeout)
                settle()
        finally:
            self._connecting.release()

    def wait_for_boot(
        self,
        title: str,
        timeout: float,
        *,
        log_in: Callable[[float], client.Connection] | None = None,
        provisions: bool = False,
    ) -> None:
        """Log in to a guest that boots, then wait for cloud-init.

        Args:
            title: of the step that is shown.
            timeout: seconds for all of it; for the login alone, if it `provisions`.
            log_in: logs in within so many seconds; by default the method `log_in`.
            provisions: cloud-init may take as long as `provision_timeout` allows, as at a first boot.

        Raises:
            BootTimeout: it was not ready in time.
            BootError: firmware found nothing to boot from, or cloud-init reports errors.
            SSHError: another host key was shown.
            VMGone, GuestPanic: the machine does not run.
        """
        __tracebackhide__ = True
        self._acquire()
        try:
            self._wait_for_boot(title, timeout, log_in or self.log_in, provisions=provisions)
        finally:
            self._connecting.release()

    def _wait_for_boot(
        self, title: str, timeout: float, log_in: Callable[[float], client.Connection], *, provisions: bool
    ) -> None:
        __tracebackhide__ = True
        machine, console = self._machine, self._health.console
        deadline = time.monotonic() + timeout
        self.close()
        shown_before = 0 if self.current is None else console.position  # by earlier boots
        watch, logged_in = firmware.Watch(machine.arch), False
        limit: provision_limit.Limit | None = None
        with machine.progress.step(title) as step:

            def check() -> None:
                __tracebackhide__ = True
                self._health.check_alive()
                if not logged_in and (complaint := watch.look(console.recent(shown_before))):
                    raise BootError(f"{machine.name}: {complaint}. {self._health.last_lines()}")
                shown = limit.lines[-1:] if limit is not None else []
                step.update("".join(shown) or self._last_line())

            target = self._target(check)
            with timings.phase("boot"):
                try:
                    self.current = readiness.wait_for_login(target, log_in, timeout)
                except BootTimeout as error:
                    if suspicion := watch.suspicion() or fast_clock(console.recent(shown_before), timeout):
                        raise BootTimeout(f"{error}\n{suspicion}") from error
                    raise
            logged_in = True  # from here on, the lines are the guest's own
            left = deadline - time.monotonic()
            limit = provision_limit.of(machine) if provisions else provision_limit.Limit(left)
            with timings.phase("cloud-init"):
                readiness.wait_for_cloud_init(target, self.current, limit)
        if report := console.clock():
            machine.progress.note(f"{machine.name}: {report}")

    def wait_for_cloud_init(self, limit: provision_limit.Limit) -> None:
        """Wait until cloud-init has finished; raises `ProvisionTimeout`, or `BootError` if it reports errors."""
        __tracebackhide__ = True
        readiness.wait_for_cloud_init(self._target(self._health.check_alive), self.connected(), limit)

    def _target(self, check: Callable[[], None]) -> readiness.Target:
        return readiness.Target(self._machine.name, self._health.console, check)

    def _last_line(self) -> str:
        return self._health.console.tail(1).removeprefix("  | ")

    # Commands

    def execute(
        self,
        text: str,
        *,
        stdin: IO[bytes] | None,
        stdout: Callable[[bytes], object],
        stderr: Callable[[bytes], object],
        timeout: float | None,
        on_poll: Callable[[], object] = lambda: None,
    ) -> int:
        """Run a line in the guest's shell as `client.Connection.execute` does; return its exit code.

        Args:
            text: the line.
            stdin: read to its end.
            stdout: called with each piece of standard output.
            stderr: called with each piece of standard error.
            timeout: seconds; `None`: no limit.
            on_poll: called four times a second in this thread; what it raises ends the command.

        Raises:
            TimedOut: the time passed.
            SSHError: the connection broke.
            GuestStalled: the guest stopped answering.
            VMGone, GuestPanic: the machine does not run.
        """
        __tracebackhide__ = True
        deadline = None if timeout is None else time.monotonic() + timeout
        connection, health = self.connected(), self._health
        record, self._machine.first_command = self._machine.first_command, None
        silence, started = self.silence_of(connection), threading.Event()

        def check() -> None:
            __tracebackhide__ = True
            on_poll()
            health.check_alive()
            health.silent = silence() > self._machine.scaled(SILENCE_SECONDS)
            if health.silent:
                raise health.stalled()

        try:
            with timings.recording(record):
                return connection.execute(
                    text,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    deadline=deadline,
                    check=check,
                    started=started.set,
                )
        except SSHError as error:
            broken = str(error)
        if connection.stale and not started.is_set():
            left = None if deadline is None else deadline - time.monotonic()
            return self.execute(text, stdin=stdin, stdout=stdout, stderr=stderr, timeout=left, on_poll=on_poll)
        if connection.stale:
            health.check_alive(_MOMENT_SECONDS)  # a container that ends loses its network, too
            raise SSHError(
                f"{self._machine.name}: {connection.stale}; {broken}, and it may still run. The next command goes "
                "through the engine, or to the new address"
            )
        trouble = self._look_after_break(connection)  # what it raises explains the break, which need not be shown
        raise SSHError(f"{self._machine.name}: {broken}{trouble}. {health.last_lines()}")

    def silence_of(self, connection: client.Connection) -> Callable[[], float]:
        """Return a function that returns for how many seconds the guest has not answered on a connection.

        It closes the connection if the container is no longer at the address to which that leads.
        """
        machine = self._machine
        keepalive = Keepalive(
            connection, min(machine.scaled(_KEEPALIVE_SECONDS), _MAX_KEEPALIVE_SECONDS), _FIRST_KEEPALIVE_SECONDS
        )

        def silence() -> float:
            silent = keepalive.silence()
            address = connection.peer if silent > _STALE_SECONDS else ""
            if address and not machine.endpoint.leads_to(address):
                network = f"network {machine.network.label} ({machine.network.engine_name})"
                now = machine.endpoint.address
                connection.stale = (
                    f"its container has another address on {network}: {now}"
                    if now
                    else f"its container was disconnected from {network}"
                )
                connection.close()
            return silent

        return silence

    def check_answer(self, connection: client.Connection) -> None:
        """Raise `GuestStalled` if the guest does not answer on a connection."""
        __tracebackhide__ = True
        if not connection.answers(self._machine.scaled(SILENCE_SECONDS)):
            raise self._health.stalled()

    def _look_after_break(self, broken: client.Connection) -> str:
        """Raise if the machine ends, which explains why a connection broke; else connect, or return why not."""
        __tracebackhide__ = True
        health = self._health
        trouble, seen = "", health.console.size
        end = time.monotonic() + self._machine.scaled(_BREAK_SECONDS)
        latest = time.monotonic() + _SHUTDOWN_SECONDS
        while time.monotonic() < end:
            health.check_alive(_MOMENT_SECONDS)
            if health.console.size > seen:  # it is on its way down, and waits for something
                seen = health.console.size
                end = min(time.monotonic() + self._machine.scaled(_BREAK_SECONDS), latest)
            self._acquire()
            try:
                if self.current is broken:  # else another thread has connected in between
                    self.current = self.log_in(_RECONNECT_SECONDS)
            except (EngineError, *client.FAILURES) as error:
                trouble = f"; a new connection was tried, and met: {error or type(error).__name__}"
            else:
                return ""
            finally:
                self._connecting.release()
        return trouble

    # Sessions that survive a restore

    def resume(self, session: resumable.Session) -> bool:
        """Continue a session that was saved with the guest's memory; return whether the guest answers in it."""
        trouble = (resumable.Unsuitable, EngineError, *client.FAILURES)
        with timings.phase("resume session"), contextlib.suppress(*trouble):
            connection = resumable.resume(self._machine.endpoint.dial_serial(), session)
            if connection.open_ahead(_SESSION_SECONDS):
                self.current = connection
                return True
            connection.close()
        return False

    def freeze(self) -> resumable.Session | None:
        """Return what it takes to continue the open session later; `None` if that is impossible."""
        if self.current is None or self.reversed_ports:  # sshd would listen on for ports that lead nowhere
            return None
        with contextlib.suppress(resumable.Unsuitable, *client.FAILURES):
            self.current.close_ahead()
            return resumable.freeze(self.current, _FREEZE_SECONDS)
        return None

    @property
    def at_rest(self) -> bool:
        """Whether the session was not used since `freeze`."""
        transport = None if self.current is None else self.current.transport
        return isinstance(transport, resumable.Recording) and transport.at_rest

    def end_session(self) -> None:
        """Close the connection; the guest ends a session on the serial port when the next one starts."""
        if self.current is None:
            return
        if isinstance(self.current.transport, resumable.Recording):
            deadline = time.monotonic() + _SESSION_SECONDS
            while self.current.alive and time.monotonic() < deadline:
                time.sleep(_CLOSE_POLL_SECONDS)
        self.current.close()
