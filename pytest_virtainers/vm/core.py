"""The machine under the handle: its container, its console and its SSH connection, and whether it is still well."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from typing import IO, TYPE_CHECKING, Any, NoReturn

from pytest_virtainers.errors import (
    BadTemplate,
    BootError,
    BootTimeout,
    EngineError,
    GuestPanic,
    GuestStalled,
    QEMUCrashed,
    SSHError,
    StoreError,
    TransferError,
    VirtainerError,
    VMGone,
)
from pytest_virtainers.ssh import client
from pytest_virtainers.ssh.keepalive import Pulse
from pytest_virtainers.support import timings
from pytest_virtainers.support.forks import Disowned, Owner, disown_in_child
from pytest_virtainers.support.interruptible import POLL_SECONDS, TimedOut
from pytest_virtainers.vm import firmware, provision_limit, readiness, shell
from pytest_virtainers.vm.console import Console
from pytest_virtainers.vm.log import CommandLog
from pytest_virtainers.vm.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Container
    from pytest_virtainers.engine.scratch import Folder
    from pytest_virtainers.ssh.endpoint import Endpoint
    from pytest_virtainers.ssh.keys import Keys
    from pytest_virtainers.support.progress import Progress
    from pytest_virtainers.vm.devices import Nic
    from pytest_virtainers.vm.network import Network

_SLOWER_WITHOUT_KVM = 10
_RECONNECT_SECONDS = 20.0
# When a connection broke, a new one is tried until the console has said nothing for so long; but no longer than
# systemd waits for a unit that does not stop (DefaultTimeoutStopSec, 90 s).
_BREAK_SECONDS, _SHUTDOWN_SECONDS = 1.5, 90.0
# A guest that does not answer a question for so long hangs; one is asked so often. Both with KVM.
SILENCE_SECONDS, _PULSE_SECONDS = 5.0, 1.0
# Long before that, the engine is asked whether the container is still on its network; without KVM just as soon.
_FIRST_PULSE_SECONDS, _MAX_PULSE_SECONDS, _ASTRAY_SECONDS = 1.0, 5.0, 1.0
_MAX_SAID_BYTES = 64 * 1024  # of the errors of our own scripts


class Core:
    """What all parts of the handle stand on.

    Attributes:
        name: of the machine.
        spec: what it was asked to be.
        user: the login user.
        keys: by which one logs in, and knows it.
        network: on which its first card is.
        container: in which it runs.
        endpoint: where SSH reaches it.
        seed_iso: the cloud-init seed that was made for it; empty for a clone, which has its template's.
        console: its serial console, since it was booted or cloned.
        log: all that was done in it.
        ends_with_it: callbacks for what ends when it is closed, before it does.
        echo: where the output of commands is shown as it comes; None: nowhere.
        first_command: where the seconds of the next command are recorded; None: nowhere.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        user: str,
        keys: Keys,
        container: Container,
        endpoint: Endpoint,
        network: Network,
        progress: Progress,
    ) -> None:
        """Take over a started container; waiting for the guest comes next."""
        self.name = spec.name
        self.spec = spec
        self.user = user
        self.keys = keys
        self.network = network
        self.seed_iso = b""
        self._supervisor = Supervisor(container.stderr)
        self.console = Console(container, spec.name, check=self._check_going, scaled=self.scaled)
        self.log = CommandLog()
        self.echo: Callable[[str], object] | None = None
        self.first_command: timings.Record | None = None
        self.container = container
        self.endpoint = endpoint
        self._progress = progress
        self._connection: client.Connection | None = None
        self._connecting = threading.RLock()  # held by who makes a connection: others may find theirs broken, too
        self._files: Folder | None = None
        self._silent = False  # whether it did not answer, when it was asked last
        self._halted = ""  # why it does not run, when we have halted it
        # Ports of the guest that lead to one of ours each, until the event.
        self._reversed: dict[int, tuple[int, threading.Event]] = {}
        self._nics: list[Nic] = []  # that were added
        self.ends_with_it = contextlib.ExitStack()
        self._owner = Owner(
            f"{spec.name}: this VM", "Use a thread, or open a session of its own with vm.ssh_command."
        )
        disown_in_child(self)

    def __repr__(self) -> str:
        return f"<VM {self.name} ({self.spec.image}) at {self.ip}>"

    def __reduce__(self) -> NoReturn:
        """Raise `TypeError`, as for all that cannot be pickled."""
        raise TypeError(
            f"{self.name}: a VM's handle cannot be sent to another process. Use a thread, or send vm.ssh_command"
        )

    @property
    def ip(self) -> str:
        """The IPv4 address at which other VMs of the network reach it."""
        return self.endpoint.address

    @property
    def ip6(self) -> str:
        """The IPv6 address at which other VMs of the network reach it; empty when that has none."""
        return self.container.addresses().address6

    @property
    def arch(self) -> str:
        """Its processor's architecture: `amd64` or `arm64`."""
        return self.container.environment.get("ARCH", "amd64")

    @property
    def firmware(self) -> str:
        """What it boots from: `bios` or `uefi`."""
        return self.container.environment.get("FIRMWARE", "bios")

    @property
    def volume(self) -> str | None:
        """The engine's volume with the machine's disk, if it has one."""
        return self.container.volume

    @property
    def folder(self) -> str:
        """The folder of its container that has its disk: in the store as long as it is to become a template."""
        return self.container.environment.get("IMAGE_DIR", "/mounted")

    @property
    def runs(self) -> bool:
        """Whether the machine runs, as far as this side knows: not ended, not halted, its kernel has not panicked."""
        try:
            self._check_alive()
        except VirtainerError:
            return False
        return True

    @property
    def alive(self) -> bool:
        """Whether the machine runs and its SSH connection stands, as far as this side knows."""
        return self.runs and not self._silent and self._connection is not None and self._connection.alive

    @property
    def why_over(self) -> str:
        """Why its container or its QEMU is over; empty as long as it can be looked at, whatever the guest does."""
        return self._end()

    def scaled(self, seconds: float) -> float:
        """Give the seconds that something takes here which takes `seconds` with KVM: ten times as long without."""
        return seconds if self._supervisor.accel == "kvm" else seconds * _SLOWER_WITHOUT_KVM

    def disown(self) -> None:
        """Leave the machine to a forked child's parent: what acts on it, all goes through these."""
        nothing: Any = Disowned(self._owner)
        self.container = self.console = self._supervisor = nothing

    def close(self) -> None:
        """Throw the machine away; nothing of it remains. Raise `VirtainerError` in a forked child."""
        self._owner.check()
        with contextlib.ExitStack() as stack:  # one failure must not keep the rest from going
            stack.callback(self.container.close)
            if self._files is not None:
                stack.callback(self._files.cleanup)
            if self._connection is not None:
                stack.callback(self._connection.close)
            stack.callback(self.ends_with_it.close)

    def _after_boot(self) -> None:
        """Do again what a guest forgets when it boots; parts of the handle have something to do."""

    # The connection

    def _connect(self, seconds: float) -> client.Connection:
        deadline = time.monotonic() + seconds
        with timings.phase("connect"):
            sock = self.endpoint.dial(seconds)
        return client.log_in(sock, self.user, self.keys, deadline - time.monotonic())

    def _take_turn(self) -> None:
        """Acquire the lock of who makes a connection; who waits for it looks whether the machine lives."""
        __tracebackhide__ = True
        while not self._connecting.acquire(timeout=POLL_SECONDS):
            self._check_alive()

    @contextlib.contextmanager
    def _connection_replaced(self) -> Iterator[None]:
        """Close the connection, and let nobody else make a new one during the block; the machine may be off."""
        __tracebackhide__ = True
        while not self._connecting.acquire(timeout=POLL_SECONDS):
            self._check_there()
        try:
            if self._connection is not None:
                self._connection.close()
            yield
        finally:
            self._connecting.release()

    def _wait(
        self,
        title: str,
        connect: Callable[[float], client.Connection],
        timeout: float,
        settle: Callable[[readiness.Machine, client.Connection], None] | None = None,
        *,
        provisions: bool = False,
    ) -> None:
        """Log in, then wait for `settle`, which by default is for cloud-init.

        Args:
            title: of the step that is shown.
            connect: logs in within so many seconds.
            timeout: seconds for all of it; for the login alone, if it `provisions`.
            settle: waits for what comes after the login.
            provisions: whether cloud-init then has the time of `provision_timeout`.
        """
        __tracebackhide__ = True
        self._take_turn()
        try:
            self._wait_in_turn(title, connect, timeout, settle, provisions=provisions)
        finally:
            self._connecting.release()

    def _wait_in_turn(
        self,
        title: str,
        connect: Callable[[float], client.Connection],
        timeout: float,
        settle: Callable[[readiness.Machine, client.Connection], None] | None,
        *,
        provisions: bool,
    ) -> None:
        __tracebackhide__ = True
        deadline = time.monotonic() + timeout
        if self._connection is not None:
            self._connection.close()
        watch, boots = firmware.Watch(self.arch), settle is None
        told = 0 if self._connection is None else self.console.position  # by former lives
        limit: provision_limit.Limit | None = None
        with self._progress.step(title) as step:

            def check() -> None:
                __tracebackhide__ = True
                self._check_alive()
                if boots and (complaint := watch.look(self.console.recent(told))):
                    raise BootError(
                        f"{self.name}: {complaint}. The last lines of its console:\n{self.console.tail()}"
                    )
                shown = limit.lines[-1:] if limit is not None else []
                step.update("".join(shown) or self.console.tail(1).removeprefix("  | "))

            machine = readiness.Machine(self.name, self.console, check)
            if settle is None:
                with timings.phase("boot"):
                    try:
                        self._connection = readiness.wait_for_login(machine, connect, timeout)
                    except BootTimeout as error:
                        if suspicion := watch.suspicion():
                            raise BootTimeout(f"{error}\n{suspicion}") from error
                        raise
                boots = False  # from here on, the lines are the guest's own
                left = deadline - time.monotonic()
                limit = provision_limit.of(self) if provisions else provision_limit.Limit(left)
                with timings.phase("cloud-init"):
                    readiness.wait_for_cloud_init(machine, self._connection, limit)
            else:
                self._connection = readiness.wait_for_login(machine, connect, timeout)
                settle(machine, self._connection)

    def _connected(self) -> client.Connection:
        """Give the connection; one that has broken (sshd was started anew, the network was away) is made anew."""
        __tracebackhide__ = True
        self._check_alive()
        if self._connection is None:
            raise SSHError(f"{self.name} has no SSH connection yet")
        if not self._connection.alive:
            self._take_turn()
            try:
                if not self._connection.alive:  # else somebody has made a new one meanwhile
                    self._connect_again()
            finally:
                self._connecting.release()
        return self._connection

    def _connect_again(self) -> None:
        __tracebackhide__ = True
        try:
            self._wait(f"connecting to {self.name} again", self._connect, self.scaled(2.0), settle=lambda *_: None)
        except BootTimeout as error:
            raise SSHError(str(error).partition("\nIf it is only slow")[0]) from error

    def _execute(
        self,
        text: str,
        *,
        stdin: IO[bytes] | None,
        stdout: Callable[[bytes], object],
        stderr: Callable[[bytes], object],
        timeout: float | None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> int:
        """Run `text` as `ssh.Connection.execute` does, calling `meanwhile` again and again in this thread."""
        __tracebackhide__ = True
        deadline = None if timeout is None else time.monotonic() + timeout
        connection = self._connected()
        record, self.first_command = self.first_command, None
        silence, started = self._silence_of(connection), threading.Event()

        def check() -> None:
            __tracebackhide__ = True
            meanwhile()
            self._check_alive()
            self._silent = silence() > self.scaled(SILENCE_SECONDS)
            if self._silent:
                raise self._hangs()

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
        if connection.astray and not started.is_set():
            left = None if deadline is None else deadline - time.monotonic()
            return self._execute(text, stdin=stdin, stdout=stdout, stderr=stderr, timeout=left, meanwhile=meanwhile)
        if connection.astray:
            self._check_alive(grace_seconds=0.25)  # a container that ends loses its network, too
            raise SSHError(
                f"{self.name}: {connection.astray}; {broken}, and it may still run. The next command goes through "
                "the engine, or to the new address"
            )
        met = self._look_after_break(connection)  # it may raise: that has its own words, and need not show these
        raise SSHError(f"{self.name}: {broken}{met}. The last lines of its console:\n{self.console.tail()}")

    def _silence_of(self, connection: client.Connection) -> Callable[[], float]:
        """Return a function that gives the seconds for which the guest's side has not answered.

        It closes the connection when its container is no longer at the address to which that leads.
        """
        every = min(self.scaled(_PULSE_SECONDS), _MAX_PULSE_SECONDS)
        pulse = Pulse(connection, every, _FIRST_PULSE_SECONDS)

        def silence() -> float:
            silent = pulse.silence()
            address = connection.peer if silent > _ASTRAY_SECONDS else ""
            if address and not self.endpoint.leads_to(address):
                network = f"network {self.network.label} ({self.network.engine_name})"
                now = self.endpoint.address
                connection.astray = (
                    f"its container has another address on {network}: {now}"
                    if now
                    else f"its container was disconnected from {network}"
                )
                connection.close()
            return silent

        return silence

    def _hangs(self) -> GuestStalled:
        """Note that the guest has not answered a question; give the error that says so."""
        self._silent = True
        return GuestStalled(
            f"{self.name}: the guest hangs: it has not answered for {self.scaled(SILENCE_SECONDS):g} s. "
            f"The last lines of its console:\n{self.console.tail(30)}"
        )

    def _look_after_break(self, broken: client.Connection) -> str:
        """Learn why a connection broke: raise when the machine goes; else have a new one, or say why not."""
        __tracebackhide__ = True
        met, told = "", self.console.size
        end = time.monotonic() + self.scaled(_BREAK_SECONDS)
        latest = time.monotonic() + _SHUTDOWN_SECONDS
        while time.monotonic() < end:
            self._check_alive(grace_seconds=0.25)
            if self.console.size > told:  # it is on its way down, and waits for something
                told, end = self.console.size, min(time.monotonic() + self.scaled(_BREAK_SECONDS), latest)
            self._take_turn()
            try:
                if self._connection is broken:  # else somebody has made a new one meanwhile
                    self._connection = self._connect(_RECONNECT_SECONDS)
            except (EngineError, *client.FAILURES) as error:
                met = f"; a new connection was tried, and met: {error or type(error).__name__}"
            else:
                return ""
            finally:
                self._connecting.release()
        return met

    def _as_root(self, script: str, *words: str, timeout: float | None = None) -> bytes:
        """Run one of our own scripts in the guest as root and give what it says; raises `VirtainerError`."""
        __tracebackhide__ = True
        output = bytearray()
        code, said = self.root_shell(
            ["sh", "-c", script, "sh", *words], stdin=None, stdout=output.extend, timeout=timeout
        )
        if code != 0:
            raise VirtainerError(f"{self.name}: {said.strip() or bytes(output).decode(errors='replace').strip()}")
        return bytes(output)

    def root_shell(
        self,
        script: list[str],
        *,
        stdin: IO[bytes] | None = None,
        stdout: Callable[[bytes], object] = lambda _data: None,
        timeout: float | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> tuple[int, str]:
        """Run a script as root in the guest; return its exit code, and what it wrote to its standard error.

        Args:
            script: the words of a command.
            stdin: read to its end and written to the script's standard input.
            stdout: called with each piece of standard output.
            timeout: in seconds; None: no limit.
            meanwhile: called four times a second; what it raises ends the script.

        Raises:
            TransferError: it was not done in time.
            SSHError, VMGone: the connection broke; the VM has ended.
        """
        __tracebackhide__ = True
        said = bytearray()

        def hear(data: bytes) -> None:
            said.extend(data[: _MAX_SAID_BYTES - len(said)])

        text = shell.line(script, sudo=self.user != "root")
        try:
            code = self._execute(text, stdin=stdin, stdout=stdout, stderr=hear, timeout=timeout, meanwhile=meanwhile)
        except TimedOut:
            raise TransferError(
                f"what we do as root in {self.name} was not done after {timeout:.0f} s; give it more (timeout=)"
            ) from None
        return code, said.decode(errors="replace")

    def _control(self, *command: str, patience: float | None = None) -> bytes:
        """Run a command in the container (not in the guest) and give what it says; raises `VirtainerError`.

        `patience` is that of `Container.run`.
        """
        __tracebackhide__ = True
        self._check_there()
        code, said = self.container.run(list(command), patience=patience)
        if code != 0:
            words = said.decode(errors="replace").strip()
            raise VirtainerError(f"{self.name}: {shlex.join(command)} failed: {words}")
        return said

    # What the supervisor says

    def _wait_until_said(self, what: str, fact: Callable[[], bool], deadline: float) -> None:
        """Wait until the supervisor has said what makes `fact` true; `what` names it in messages."""
        __tracebackhide__ = True
        with timings.phase(f"wait: {what}"):
            heard = self._supervisor.wait_for(fact, max(0.0, deadline - time.monotonic()))
        if not heard:
            self._check_alive()
            raise BootTimeout(
                f"{self.name}: the supervisor has not said {what!r} in time; it said:\n{self._supervisor.words}"
            )

    @property
    def _off(self) -> bool:
        """Whether the guest has switched itself off, and was not started again."""
        return self._supervisor.off

    def _end(self, grace_seconds: float = 0.0) -> str:
        """Say why its container or its QEMU is over (wait a moment for that); nothing when it is not."""
        if self.container.wait(grace_seconds):
            return self._supervisor.last_words or "its container said nothing"
        return self._supervisor.over

    def _check_there(self, grace_seconds: float = 0.0) -> None:
        """Raise when QEMU is over (wait a moment for that); one whose guest is halted, off or hangs does answer."""
        __tracebackhide__ = True
        if self._end(grace_seconds):
            self._check_alive()

    def _check_going(self) -> None:
        """Raise when the machine does not run; but not when we have halted it, as then we may let it go on."""
        __tracebackhide__ = True
        if not self._halted:
            self._check_alive()

    def _check_alive(self, grace_seconds: float = 0.0) -> None:
        """Raise when the machine does not run: it is over (wait a moment for that), halted, hangs or has panicked."""
        __tracebackhide__ = True
        panic = self.console.panic()
        if panic is not None:
            raise GuestPanic(f"{self.name}: {panic}. The last lines of its console:\n{self.console.tail(30)}")
        why = self._end(grace_seconds)
        if not why and self._halted:
            raise VMGone(f"{self.name} does not run: {self._halted}")
        if not why and self._off:
            why = "the guest switched itself off"
        if why:
            raise self._kind_of_end()(
                f"{self.name} has ended: {why}. The last lines of its console:\n{self.console.tail()}"
            )
        if cause := self._supervisor.disk_failure:
            raise StoreError(
                f"{self.name} stands still, because its disk could not be written: {cause}. "
                "Make room on the engine's disk, or let the VM write less"
            )
        if self.console.stalled():
            raise GuestStalled(
                f"{self.name}: the guest's kernel hangs (it reports one RCU stall again and again). "
                f"The last lines of its console:\n{self.console.tail(30)}"
            )

    def _kind_of_end(self) -> type[VMGone]:
        if self._supervisor.reason == "bad-template":
            return BadTemplate
        return QEMUCrashed if self._supervisor.crashed else VMGone
