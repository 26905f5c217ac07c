"""The handle of one running VM: what tests write against."""

from __future__ import annotations

import contextlib
import io
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import paramiko

from pytest_virtainers import durations, scratch
from pytest_virtainers.errors import (
    BadTemplate,
    BootTimeout,
    CommandFailed,
    CommandTimeout,
    EngineError,
    GuestPanic,
    GuestStalled,
    SSHError,
    StoreError,
    TransferError,
    Unclonable,
    VMGone,
)
from pytest_virtainers.handle import individual, line, readiness, shell, ssh, transfer
from pytest_virtainers.handle.console import Console
from pytest_virtainers.handle.patience import TimedOut
from pytest_virtainers.keys import KeyPair
from pytest_virtainers.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from tempfile import TemporaryDirectory

    from pytest_virtainers.engine.container import Container
    from pytest_virtainers.handle.endpoint import Endpoint
    from pytest_virtainers.keys import Keys
    from pytest_virtainers.progress import Progress
    from pytest_virtainers.spec import Spec


# What the supervisor says (images/runtime/virtainer: __main__.py, ending.py, supervise.py).
_CLONE_RUNS = b"virtainer: clone runs"
_BAD_TEMPLATE = "end: bad-template: "
_DISK_FAILED = b"guest paused, its disk failed: "
_CLONE_SECONDS = 60.0
_LOGIN_SECONDS = 60.0
_SESSION_SECONDS = 10.0
_SETTLE_SECONDS = 2.0

_BOOT_ID = ["cat", "/proc/sys/kernel/random/boot_id"]


@dataclass(frozen=True)
class Snapshot:
    """A machine's memory and disk at one instant; it is kept as long as the machine."""

    vm: VM
    name: str


class VM:
    """A virtual machine that is up, with SSH connected.

    Attributes:
        name: of the machine.
        spec: what it was asked to be.
        user: the login user.
        keys: by which one logs in, and knows it.
        console: its serial console, since it was booted or cloned.
        first_command: where the seconds of the next command are recorded; None: nowhere.
    """

    def __init__(
        self, spec: Spec, *, user: str, keys: Keys, container: Container, endpoint: Endpoint, progress: Progress
    ) -> None:
        """Take over a started container; `wait_until_ready` comes next."""
        self.name = spec.name
        self.spec = spec
        self.user = user
        self.console = Console(container)
        self.keys = keys
        self._container = container
        self._endpoint = endpoint
        self._progress = progress
        self._connection: ssh.Connection | None = None
        self._snapshots = 0
        self.first_command: durations.Record | None = None
        self._files: TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"<VM {self.name} ({self.spec.image}) at {self.ip}>"

    @property
    def ip(self) -> str:
        """The IPv4 address at which other VMs of the network reach it."""
        return self._endpoint.address

    @property
    def runs(self) -> bool:
        """Whether the machine runs, as far as this side knows: it has not ended, its kernel has not panicked."""
        return not self._container.ended and self.console.panic() is None

    @property
    def alive(self) -> bool:
        """Whether the machine runs and its SSH connection stands, as far as this side knows."""
        return self.runs and self._connection is not None and self._connection.alive

    # Commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        input: str | bytes | None = None,  # noqa: A002  (as subprocess.run calls it)
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        sudo: bool = False,
    ) -> Result:
        """Run a command in the guest and wait for its end.

        Args:
            command: text is for the guest's shell; a sequence of words is quoted.
            check: raise when the exit code is not 0.
            input: what the command reads from its standard input (text as UTF-8); nothing when None.
            timeout: seconds; holds even when the guest no longer answers. None: no limit.
            env: variables for the command.
            cwd: folder to run in.
            sudo: run it as root.

        Raises:
            CommandFailed: the exit code is not 0 (with `check`).
            CommandTimeout: it was still running after `timeout` seconds.
            VMGone, GuestPanic, SSHError: the machine or the connection went away.
        """
        __tracebackhide__ = True
        data = input.encode() if isinstance(input, str) else input
        text = shell.line(command, sudo=sudo, env=env, cwd=cwd)
        stdout, stderr = bytearray(), bytearray()
        began = time.monotonic()

        def result(exit_code: int) -> Result:
            shown = command if isinstance(command, str) else shlex.join(command)
            return Result(shown, exit_code, bytes(stdout), bytes(stderr), time.monotonic() - began)

        try:
            exit_code = self._execute(
                text,
                stdin=None if data is None else io.BytesIO(data),
                stdout=stdout.extend,
                stderr=stderr.extend,
                timeout=timeout,
            )
        except TimedOut:
            raise CommandTimeout(result(-1), self.name) from None
        finished = result(exit_code)
        if check and not finished.ok:
            raise CommandFailed(finished, self.name)
        return finished

    # Files

    def put(self, source: str | Path, dest: str, *, owner: str | None = None, timeout: float | None = None) -> str:
        """Copy a local file or tree into the guest, as `cp -a SOURCE DEST` would; modes and links are kept.

        Args:
            source: local path.
            dest: path in the guest; folders on the way are made.
            owner: `user` or `user:group`; by default the owner of the folder that it goes into.
            timeout: seconds; None: no limit.

        Returns:
            The path of what was written in the guest.

        Raises:
            FileNotFoundError: `source` is not there.
            TransferError: the copy failed; what was at `dest` before is untouched.
        """
        __tracebackhide__ = True
        return transfer.put(self._root_shell, Path(source), dest, owner, timeout)

    def get(self, source: str, dest: str | Path, *, timeout: float | None = None) -> Path:
        """Copy a file or tree of the guest to this machine, as `cp -a SOURCE DEST` would; modes and links are kept.

        Returns:
            The path of what was written here.

        Raises:
            FileNotFoundError: `source` is not there in the guest.
            TransferError: the copy failed.
        """
        __tracebackhide__ = True
        return transfer.get(self._root_shell, source, Path(dest), timeout)

    def read_text(self, path: str, *, timeout: float | None = None) -> str:
        """Give the content of a file of the guest; bytes that are not UTF-8 survive as surrogate escapes.

        Raises:
            FileNotFoundError: it is not there.
        """
        __tracebackhide__ = True
        return transfer.read(self._root_shell, path, timeout).decode("utf-8", "surrogateescape")

    def write_text(
        self,
        path: str,
        text: str,
        *,
        mode: int | None = None,
        owner: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Write a file of the guest in one step (readers see the old or the new content, never a part).

        Args:
            path: in the guest; folders on the way are made, a symbolic link is followed.
            text: written as UTF-8.
            mode: permission bits; by default those of the file that was there, 0644 for a new one.
            owner: `user` or `user:group`; by default the file's former owner, or the owner of its folder.
            timeout: seconds; None: no limit.

        Raises:
            TransferError: it could not be written; what was there before is untouched.
        """
        __tracebackhide__ = True
        content = text.encode("utf-8", "surrogateescape")
        transfer.write(self._root_shell, path, content, mode=mode, owner=owner, timeout=timeout)

    # Ways in for other tools

    @property
    def ssh_command(self) -> str:
        """A shell line that opens a session on this VM; its key file is private and goes with the VM."""
        if self._files is None:
            self._files = scratch.folder("ssh")
            key = Path(self._files.name, "key")
            key.touch(mode=0o600)
            key.write_text(self.keys.login.private)
            Path(self._files.name, "known_hosts").write_text(f"{self.name} {self.keys.host.public}\n")
        folder = Path(self._files.name)
        options = {
            "IdentityFile": str(folder / "key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(folder / "known_hosts"),
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": self.name,
            **self._endpoint.ssh_options(),
        }
        words = ["ssh", "-F", "none"]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        return shlex.join([*words, f"{self.user}@{self.ip or self.name}"])

    # Life

    def wait_until_ready(self) -> None:
        """Wait for SSH and cloud-init after a start; raises `BootError` and its children, `VMGone` or `SSHError`."""
        self._wait(f"booting {self.name} ({self.spec.image})", self._connect, self.spec.boot_timeout)

    def wait_until_cloned(self, session: line.Session | None) -> None:
        """Wait until a clone runs, knows who it is, and lets us in.

        Args:
            session: that was open when its template was saved; without one, or when it is broken, we log in.

        Raises:
            BootTimeout: not within the time that restoring may take.
            VMGone, SSHError: as `run` does.
        """
        __tracebackhide__ = True
        deadline = time.monotonic() + min(_CLONE_SECONDS, self.spec.boot_timeout)
        self._wait_for_word(_CLONE_RUNS, deadline)
        if session is not None:
            with durations.phase("resume session"), contextlib.suppress(EngineError, *ssh.FAILURES):
                connection = line.resume(self._endpoint.dial_line(), session)
                if connection.answers(_SESSION_SECONDS):
                    self._connection = connection
                else:
                    connection.close()
        if self._connection is not None:
            self._wait_for_word(individual.DONE, deadline)
            return
        self._wait(
            f"cloning {self.name} ({self.spec.image})",
            self._connect,
            deadline - time.monotonic(),
            settle=lambda _machine, _connection: self._wait_for_word(individual.DONE, deadline),
        )

    def renew_identity(self) -> None:
        """Give a clone its own machine-id and SSH host key, and connect anew; raises as `wait_until_cloned`."""
        __tracebackhide__ = True
        host_key = KeyPair.generate()
        individual.renew(self, host_key)
        self.keys = replace(self.keys, host=host_key)
        self._wait(f"renewing {self.name}", self._connect_renewed, _CLONE_SECONDS, settle=lambda *_: None)

    def _connect_renewed(self, seconds: float) -> ssh.Connection:
        try:
            return self._connect(seconds)
        except paramiko.BadHostKeyException:  # sshd is just reading the new one
            raise ConnectionAbortedError("sshd still shows the template's host key") from None

    def _open_line(self) -> line.Session | None:
        """Open the SSH session that goes on in clones; None when the guest cannot have one."""
        with contextlib.suppress(line.Unsuitable, EngineError, SSHError, *ssh.FAILURES):
            if not self.run(line.SERVE, sudo=True, check=False).ok:
                return None
            stream = self._container.stream(line.COMMAND)
            connection = ssh.log_in(stream, self.user, self.keys, _LOGIN_SECONDS, line.Recording)
            try:
                # Once for nothing: what sshd and the shell load for it, the clones have then.
                connection.execute(
                    "true", stdin=None, stdout=bytes, stderr=bytes, deadline=None, check=self._check_alive
                )
                return line.freeze(connection.transport, _LOGIN_SECONDS)
            finally:
                connection.close()
        return None

    def save(self, hostname: str) -> line.Session | None:
        """Save this machine, called `hostname`, as a template into its folder; it ends.

        Returns:
            The SSH session that its clones go on with, if they can.

        Raises:
            Unclonable: the guest lacks what makes its clones individuals.
            StoreError: it could not be saved; the message has the supervisor's words.
        """
        __tracebackhide__ = True
        session = self._open_line()
        self.run("sync")  # or else each clone would first of all write to its disk what is not there yet
        deadline = time.monotonic() + _CLONE_SECONDS
        individual.leave_helper(self, hostname)
        self._wait_for_word(individual.READY, deadline)
        if self._connection is not None:
            self._connection.close()
        # The guest's side of the session ends, too. Its user manager stays for ten seconds and so is in the template:
        # each clone has one less to start.
        time.sleep(_SETTLE_SECONDS)
        code, output = self._container.run(["save"])
        if code != 0:
            raise StoreError(
                f"saving a template of {self.spec.image} failed: {output.decode(errors='replace').strip()}"
            )
        with contextlib.suppress(EngineError):  # the container may be gone before the command's end is asked for
            self._container.run(["qmp", '{"execute": "quit"}'])
        if not self._container.wait(_CLONE_SECONDS):
            raise StoreError(f"saving a template of {self.spec.image}: its QEMU did not quit")
        return session

    def snapshot(self) -> Snapshot:
        """Keep memory and disk as they are now, to go back to with `restore`; the guest stands still meanwhile.

        Raises:
            StoreError: it could not be kept; the message has QEMU's words, or what the guest lacks for it.
        """
        __tracebackhide__ = True
        ready, done = self._times(individual.READY), self._times(individual.DONE)
        deadline = time.monotonic() + _CLONE_SECONDS
        try:
            individual.leave_helper(self, hostname="")
        except Unclonable as lack:
            raise StoreError(f"no snapshot of {self.name} can be restored: {lack}") from lack
        self._wait_for_word(individual.READY, deadline, ready + 1)
        self._snapshots += 1
        snapshot = Snapshot(self, f"s{self._snapshots}")
        self._in_place("save", snapshot)
        self._wait_for_word(individual.DONE, deadline, done + 1)
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this machine: memory and disk as they were, SSH connected anew, the clock right.

        Raises:
            ValueError: it is one of another machine.
            StoreError: it could not be restored; the message has QEMU's words.
            BootError: the guest did not answer afterwards.
        """
        __tracebackhide__ = True
        if snapshot.vm is not self:
            raise ValueError(f"{snapshot!r} is not a snapshot of {self!r}")
        done = self._times(individual.DONE)
        deadline = time.monotonic() + _CLONE_SECONDS
        self.console.start_anew()
        self._in_place("load", snapshot)
        self._wait(
            f"restoring {self.name}",
            self._connect,
            _CLONE_SECONDS,
            settle=lambda _machine, _connection: self._wait_for_word(individual.DONE, deadline, done + 1),
        )

    def _in_place(self, action: str, snapshot: Snapshot) -> None:
        __tracebackhide__ = True
        self._check_alive()
        code, output = self._container.run(["snapshot", action, snapshot.name])
        if code != 0:
            raise StoreError(f"snapshot {action} on {self.name} failed: {output.decode(errors='replace').strip()}")

    def reboot(self, *, timeout: float | None = None) -> None:
        """Reboot the guest and wait until it is ready again, with a boot id other than before.

        Args:
            timeout: seconds for all of it; by default the `boot_timeout` of its marker.

        Raises:
            BootTimeout: it was not ready in time, or never went down.
        """
        __tracebackhide__ = True
        before = self.run(_BOOT_ID).stdout

        def connect(seconds: float) -> ssh.Connection:
            connection = self._connect(seconds)
            self._connection = connection
            try:
                boot_id = self.run(_BOOT_ID, timeout=seconds).stdout
            except (SSHError, CommandFailed) as error:
                raise ConnectionAbortedError(f"the guest is just going down ({error})") from error
            if boot_id == before:
                connection.close()
                raise ConnectionAbortedError("the guest has not gone down yet")
            return connection

        with contextlib.suppress(SSHError):  # the command and the connection go down with the guest
            self.run("systemctl reboot || reboot", sudo=True, check=False)
        self._wait(f"rebooting {self.name}", connect, self.spec.boot_timeout if timeout is None else timeout)

    def _connect(self, seconds: float) -> ssh.Connection:
        with durations.phase("connect"):
            sock = self._endpoint.dial(seconds)
        return ssh.log_in(sock, self.user, self.keys, seconds)

    def _times(self, word: bytes) -> int:
        """Tell how often the supervisor has said something."""
        return self._container.stderr.count(word)

    def _wait_for_word(self, word: bytes, deadline: float, times: int = 1) -> None:
        """Wait until the supervisor has said something so many times."""
        __tracebackhide__ = True
        with durations.phase(f"wait: {word.decode().rpartition(': ')[2]}"):
            heard = self._container.wait_for(word, max(0.0, deadline - time.monotonic()), times)
        if not heard:
            self._check_alive()
            said = self._container.stderr.decode(errors="replace").strip()
            raise BootTimeout(f"{self.name}: the supervisor has not said {word.decode()!r} in time; it said:\n{said}")

    def _wait(
        self,
        title: str,
        connect: Callable[[float], ssh.Connection],
        timeout: float,
        settle: Callable[[readiness.Machine, ssh.Connection], None] | None = None,
    ) -> None:
        """Log in, then wait for `settle`, which by default is for cloud-init."""
        __tracebackhide__ = True
        deadline = time.monotonic() + timeout
        if self._connection is not None:
            self._connection.close()
        with self._progress.step(title) as step:

            def check() -> None:
                self._check_alive()
                if self.console.stalled():
                    raise GuestStalled(
                        f"{self.name}: the guest's kernel hangs (it reports one RCU stall again and again). "
                        f"The last lines of its console:\n{self.console.tail(30)}"
                    )
                step.update(self.console.tail(1).removeprefix("  | "))

            machine = readiness.Machine(self.name, self.console, check)
            if settle is None:
                with durations.phase("boot"):
                    self._connection = readiness.wait_for_login(machine, connect, timeout)
                with durations.phase("cloud-init"):
                    readiness.wait_for_cloud_init(machine, self._connection, deadline - time.monotonic())
            else:
                self._connection = readiness.wait_for_login(machine, connect, timeout)
                settle(machine, self._connection)

    def close(self) -> None:
        """Throw the machine away; nothing of it remains."""
        with contextlib.ExitStack() as stack:  # one failure must not keep the rest from going
            stack.callback(self._container.close)
            if self._files is not None:
                stack.callback(self._files.cleanup)
            if self._connection is not None:
                stack.callback(self._connection.close)

    def _execute(
        self,
        text: str,
        *,
        stdin: IO[bytes] | None,
        stdout: Callable[[bytes], object],
        stderr: Callable[[bytes], object],
        timeout: float | None,
    ) -> int:
        __tracebackhide__ = True
        deadline = None if timeout is None else time.monotonic() + timeout
        self._check_alive()
        if self._connection is None:
            raise SSHError(f"{self.name} has no SSH connection yet")
        record, self.first_command = self.first_command, None
        try:
            with durations.recording(record):
                return self._connection.execute(
                    text, stdin=stdin, stdout=stdout, stderr=stderr, deadline=deadline, check=self._check_alive
                )
        except SSHError as error:
            self._check_alive(grace_seconds=1.0)
            raise SSHError(f"{self.name}: {error}. The last lines of its console:\n{self.console.tail()}") from error

    def _root_shell(
        self, script: list[str], *, stdin: IO[bytes] | None, stdout: Callable[[bytes], object], timeout: float | None
    ) -> tuple[int, str]:
        __tracebackhide__ = True
        said = bytearray()
        text = shell.line(script, sudo=self.user != "root")
        try:
            code = self._execute(text, stdin=stdin, stdout=stdout, stderr=said.extend, timeout=timeout)
        except TimedOut:
            raise TransferError(
                f"a file transfer with {self.name} was not done after {timeout:.0f} s; give it more (timeout=)"
            ) from None
        return code, said.decode(errors="replace")

    def _check_alive(self, grace_seconds: float = 0.0) -> None:
        """Raise when the virtainer has ended (waiting a moment for that) or the guest has panicked."""
        __tracebackhide__ = True
        panic = self.console.panic()
        if panic is not None:
            raise GuestPanic(f"{self.name}: {panic}. The last lines of its console:\n{self.console.tail(30)}")
        said = self._container.stderr
        if self._container.wait(grace_seconds):
            last_words = self._container.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            kind = BadTemplate if _BAD_TEMPLATE in last_words else VMGone
            raise kind(
                f"{self.name} has ended: {last_words or 'its container said nothing'}. "
                f"The last lines of its console:\n{self.console.tail()}"
            )
        if _DISK_FAILED in said:
            cause = said.partition(_DISK_FAILED)[2].partition(b"Mend it")[0].decode(errors="replace").strip()
            raise StoreError(
                f"{self.name} stands still, because its disk could not be written: {cause} Make room on the engine's "
                "disk, or let the VM write less"
            )
