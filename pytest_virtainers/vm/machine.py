"""The machine under a `VM`: its container, console, SSH connection and health, and what launching it takes.

Features (`commands.py`, `power.py`, `nics.py` …) are classes that take a `Machine`. Tests do not use it.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

import paramiko

from pytest_virtainers.errors import RootCommandError, RootCommandTimeout, VirtainerError
from pytest_virtainers.ssh.keys import KeyPair
from pytest_virtainers.support import timings
from pytest_virtainers.support.forks import Disowned, Owner, disown_in_child
from pytest_virtainers.support.interruptible import TimedOut
from pytest_virtainers.support.runtime_modules import Variable, protocol
from pytest_virtainers.vm import identity, provision_limit, shell
from pytest_virtainers.vm.commands import Commands
from pytest_virtainers.vm.connection import SSHConnection
from pytest_virtainers.vm.health import Health
from pytest_virtainers.vm.log import CommandLog
from pytest_virtainers.vm.qmp import QMP

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Container
    from pytest_virtainers.ssh import client, resumable
    from pytest_virtainers.ssh.endpoint import Endpoint
    from pytest_virtainers.ssh.keys import Keys
    from pytest_virtainers.support.progress import Progress
    from pytest_virtainers.vm.console import Console
    from pytest_virtainers.vm.network import Network

_MAX_STDERR_BYTES = 64 * 1024  # of this package's scripts
RESTORE_SECONDS = 60.0
"""Seconds that restoring a saved machine may take."""


class Machine:
    """One machine in its container, from its start on.

    Attributes:
        name: its name.
        spec: what was requested.
        user: the login user.
        keys: the login's key and the host key.
        network: the network of its first card.
        container: the container in which it runs.
        endpoint: where SSH reaches it.
        progress: where long steps are shown.
        seed_iso: the cloud-init seed that was made for it; empty for a clone, which has its template's.
        log: its commands and transfers.
        echo: where the output of commands is shown while they run; `None`: nowhere.
        first_command: where the seconds of the next command are recorded; `None`: nowhere.
        health: whether it still runs properly.
        ssh: its SSH connection.
        commands: runs commands in it.
        qmp: sends commands to its QEMU.
        on_close: callbacks for what ends just before the machine does.
        took_over: whether it was restored from one template to become another (`saving.become_another`).
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
        """Wrap a started container; one of the `wait_until_…` methods then waits for its guest."""
        self.name = spec.name
        self.spec = spec
        self.user = user
        self.keys = keys
        self.network = network
        self.container = container
        self.endpoint = endpoint
        self.progress = progress
        self.seed_iso = b""
        self.log = CommandLog()
        self.echo: Callable[[str], object] | None = None
        self.first_command: timings.Record | None = None
        self.health = Health(spec.name, container)
        self.ssh = SSHConnection(self)
        self.commands = Commands(self)
        self.qmp = QMP(self)
        self.on_close = contextlib.ExitStack()
        self.took_over = False
        self._owner = Owner(
            f"{spec.name}: this VM", "Use a thread, or open a new session with vm.access.ssh_command."
        )
        disown_in_child(self)

    # Facts

    @property
    def console(self) -> Console:
        """The serial console, since the machine was booted or cloned."""
        return self.health.console

    @property
    def ip(self) -> str:
        """The IPv4 address at which other VMs of the network reach the machine."""
        return self.endpoint.address

    @property
    def ip6(self) -> str:
        """The IPv6 address at which other VMs of the network reach the machine; empty if that has none."""
        return self.container.addresses().address6

    @property
    def arch(self) -> str:
        """The processor's architecture: `amd64` or `arm64`."""
        return self.container.environment.get(Variable.ARCH, "amd64")

    @property
    def firmware(self) -> str:
        """What the machine boots from: `bios` or `uefi`."""
        return self.container.environment.get(Variable.FIRMWARE, "bios")

    @property
    def volume(self) -> str | None:
        """The engine's volume with the disk, if there is one."""
        return self.container.volume

    @property
    def folder(self) -> str:
        """The folder of the container with the disk: in the store if the machine is to become a template."""
        return self.container.environment.get(Variable.IMAGE_DIR, protocol.IMAGE_DIR)

    @property
    def runs(self) -> bool:
        """Whether the machine runs, as far as this side knows: not ended, not halted, no kernel panic."""
        return self.health.runs

    @property
    def alive(self) -> bool:
        """Whether the machine runs and its SSH connection stands, as far as this side knows."""
        return self.runs and not self.health.silent and self.ssh.alive

    @property
    def exit_reason(self) -> str:
        """Why the container or QEMU ended; empty while both run, whatever the guest does."""
        return self.health.exit_reason()

    def scaled(self, seconds: float) -> float:
        """Return how long something may take here that takes `seconds` with KVM: ten times as long without."""
        return self.health.scaled(seconds)

    # Its end

    def disown(self) -> None:
        """Leave the machine to a forked child's parent: everything that acts on it uses these parts."""
        nothing: Any = Disowned(self._owner)
        self.container = nothing
        self.health.disown(nothing)

    def close(self) -> None:
        """Remove the machine and its disk. Raise `VirtainerError` in a forked child."""
        self._owner.check()
        with contextlib.ExitStack() as stack:  # one failure must not keep the rest from being removed
            stack.callback(self.container.close)
            stack.callback(self.ssh.close)
            stack.callback(self.on_close.close)

    # Scripts of this package

    def run_as_root(self, script: str, *words: str, timeout: float | None = None) -> bytes:
        """Run a script of this package as root in the guest; return its standard output.

        Args:
            script: for `sh`.
            words: its arguments.
            timeout: seconds; `None`: no limit.

        Raises:
            VirtainerError: it failed; the message has its standard error.
        """
        __tracebackhide__ = True
        output = bytearray()
        code, trouble = self.root_shell(["sh", "-c", script, "sh", *words], stdout=output.extend, timeout=timeout)
        if code != 0:
            raise RootCommandError(
                f"{self.name}: {trouble.strip() or bytes(output).decode(errors='replace').strip()}"
            )
        return bytes(output)

    def root_shell(
        self,
        script: list[str],
        *,
        stdin: IO[bytes] | None = None,
        stdout: Callable[[bytes], object] = lambda _data: None,
        timeout: float | None = None,
        on_poll: Callable[[], object] = lambda: None,
    ) -> tuple[int, str]:
        """Run a script as root in the guest; return its exit code, and what it wrote to its standard error.

        Args:
            script: the words of a command.
            stdin: read to its end and written to the script's standard input.
            stdout: called with each piece of standard output.
            timeout: seconds; `None`: no limit.
            on_poll: called four times a second; what it raises ends the script.

        Raises:
            RootCommandTimeout: it did not finish in time.
            SSHError, VMGone: the connection broke; the VM ended.
        """
        __tracebackhide__ = True
        trouble = bytearray()

        def collect(data: bytes) -> None:
            trouble.extend(data[: _MAX_STDERR_BYTES - len(trouble)])

        text = shell.line(script, sudo=self.user != "root")
        try:
            code = self.ssh.execute(
                text, stdin=stdin, stdout=stdout, stderr=collect, timeout=timeout, on_poll=on_poll
            )
        except TimedOut:
            raise RootCommandTimeout(
                f"{self.name}: a root command did not finish within {timeout:.0f} s. Raise timeout= if it is slow"
            ) from None
        return code, trouble.decode(errors="replace")

    def control(self, *command: str, patience: float | None = None) -> bytes:
        """Run a command in the container, not in the guest; return its output.

        Args:
            command: its words.
            patience: seconds without output after which it fails, as in `Container.run`.

        Raises:
            VirtainerError: it failed; the message has its output.
        """
        __tracebackhide__ = True
        self.health.check_qemu()
        code, output = self.container.run(list(command), patience=patience)
        if code != 0:
            words = output.decode(errors="replace").strip()
            raise VirtainerError(f"{self.name}: {shlex.join(command)} failed: {words}")
        return output

    # Bring-up

    def wait_until_ready(self) -> None:
        """Wait for SSH and cloud-init after a first boot.

        Raises:
            BootError, BootTimeout, ProvisionTimeout: it did not get ready.
            VMGone, SSHError: the machine ended; another host key was shown.
        """
        __tracebackhide__ = True
        self.ssh.wait_for_boot(f"booting {self.name} ({self.spec.image})", self.spec.boot_timeout, provisions=True)
        self.commands.run("sync")  # a power cut should not undo what the first boot has made, such as host keys

    def wait_until_provisioned(self) -> None:
        """Wait until cloud-init has finished, as long as `provision_timeout` allows.

        Raises:
            ProvisionTimeout: it took longer.
            BootError: it reports errors; the message has them.
        """
        __tracebackhide__ = True
        self.ssh.wait_for_cloud_init(provision_limit.of(self))

    def wait_until_resumed(self) -> None:
        """Connect to a machine that runs already, or continues from its evidence; raises as `wait_until_ready`."""
        __tracebackhide__ = True
        self.ssh.establish(f"resuming {self.name} ({self.spec.image})", self.spec.boot_timeout)

    def wait_until_cloned(self, session: resumable.Session | None) -> None:
        """Wait until a clone runs, has its identity, and accepts commands.

        Args:
            session: the SSH session that was open when its template was saved; without one, or if it does not
                answer, a login is made.

        Raises:
            BootTimeout: restoring took too long.
            VMGone, SSHError: the machine ended; the login failed.
        """
        __tracebackhide__ = True
        deadline = time.monotonic() + min(RESTORE_SECONDS, self.spec.boot_timeout)
        supervisor = self.health.supervisor
        self.health.wait_until_reported("restored", lambda: supervisor.restored, deadline)
        for part, seconds in supervisor.restoring.items():
            timings.part(part, seconds)
        if session is not None and self.ssh.resume(session):
            identity.wait_until_done(self, deadline)
            return
        self.ssh.establish(
            f"cloning {self.name} ({self.spec.image})",
            deadline - time.monotonic(),
            settle=lambda: identity.wait_until_done(self, deadline),
        )

    def renew_identity(self) -> None:
        """Replace a clone's machine-id and SSH host key, and connect again; raises as `wait_until_cloned`."""
        __tracebackhide__ = True
        host_key = KeyPair.generate()
        identity.renew(self, host_key)
        self.keys = replace(self.keys, host=host_key)

        def log_in(seconds: float) -> client.Connection:
            try:
                return self.ssh.log_in(seconds)
            except paramiko.BadHostKeyException:  # sshd is just reading the new one
                raise ConnectionAbortedError("sshd still shows the template's host key") from None

        self.ssh.establish(f"renewing {self.name}", RESTORE_SECONDS, log_in=log_in)
