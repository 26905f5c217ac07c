"""Commands in the guest: `run` waits for one, `popen` lets it run."""

from __future__ import annotations

import contextlib
import io
import shlex
import time
from typing import IO, TYPE_CHECKING

from pytest_virtainers.errors import CommandFailed, CommandTimeout, VirtainerError
from pytest_virtainers.support.interruptible import TimedOut
from pytest_virtainers.vm import shell
from pytest_virtainers.vm.core import Core
from pytest_virtainers.vm.echo import Echo
from pytest_virtainers.vm.limited import outputs
from pytest_virtainers.vm.process import Process
from pytest_virtainers.vm.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# With KVM: for killing what is left of a command, and between asking a process to end and killing it.
_KILL_SECONDS, _GRACE_SECONDS = 3.0, 2.0


class Commands(Core):
    """The part of the handle that runs commands."""

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
        user: str | None = None,
    ) -> Result:
        """Run a command in the guest and wait for its end.

        Args:
            command: text is for the guest's shell; a sequence of words is quoted.
            check: raise when the exit code is not 0.
            input: what the command reads from its standard input (text as UTF-8); nothing when None.
            timeout: seconds; holds even when the guest no longer answers, and then all processes of the command's
                session are killed. None: no limit.
            env: variables for the command.
            cwd: folder to run in.
            sudo: run it as root.
            user: run it as this user.

        Raises:
            CommandFailed: the exit code is not 0 (with `check`).
            CommandTimeout: it was still running after `timeout` seconds.
            OutputTooLarge: it printed more than 1 GiB on a stream.
            VMGone, GuestPanic, SSHError: the machine or the connection went away.
        """
        __tracebackhide__ = True
        data = input.encode() if isinstance(input, str) else input
        shown = command if isinstance(command, str) else shlex.join(command)
        stdout, stderr = outputs(shown, self.name)
        shown_before = self.console.size
        began = time.monotonic()

        def result(exit_code: int, seconds: float) -> Result:
            return Result(shown, exit_code, bytes(stdout), bytes(stderr), seconds)

        try:
            exit_code = self._perform(
                shell.line(command, sudo=sudo, user=user, env=env, cwd=cwd),
                shown,
                user or ("root" if sudo else self.user),
                stdin=None if data is None else io.BytesIO(data),
                stdout=stdout.take,
                stderr=stderr.take,
                leader=None if timeout is None else shell.Leader(),
                timeout=timeout,
            )
        except TimedOut:
            # Not the time until its processes were killed: that may take seconds more.
            raise CommandTimeout(result(-1, timeout or 0), self.name) from None
        finished = result(exit_code, time.monotonic() - began)
        if check and not finished.ok:
            raise CommandFailed(finished, self.name, self.console.killed_for_memory(shown_before))
        return finished

    def popen(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        sudo: bool = False,
        user: str | None = None,
    ) -> Process:
        """Start a command in the guest and let it run; it ends with the machine at the latest.

        Args:
            command: text is for the guest's shell; a sequence of words is quoted.
            env: variables for the command.
            cwd: folder to run in.
            sudo: run it as root.
            user: run it as this user.

        Raises:
            VMGone, GuestPanic, SSHError: the machine or the connection is away.
        """
        __tracebackhide__ = True
        self._connected()
        script = shell.line(command, sudo=sudo, user=user, env=env, cwd=cwd)
        shown = command if isinstance(command, str) else shlex.join(command)
        leader = shell.Leader()

        def execute(stdin: IO[bytes], stdout: Callable[[bytes], object], stderr: Callable[[bytes], object]) -> int:
            who = user or ("root" if sudo else self.user)
            return self._perform(
                script, shown, who, stdin=stdin, stdout=stdout, stderr=stderr, leader=leader, timeout=None
            )

        process = Process(shown, self.name, execute, leader, self._signal, grace=self.scaled(_GRACE_SECONDS))
        self.ends_with_it.callback(process.abandon)
        return process

    def _perform(
        self,
        script: str,
        shown: str,
        who: str,
        *,
        stdin: IO[bytes] | None,
        stdout: Callable[[bytes], object],
        stderr: Callable[[bytes], object],
        leader: shell.Leader | None,
        timeout: float | None,
    ) -> int:
        """Run a shell line, write it down, and show what it prints if that is wanted; raises `TimedOut`."""
        __tracebackhide__ = True
        echoes = Echo(self.name, self.echo), Echo(self.name, self.echo)
        with self.log.entry(shown, who) as entry:

            def out(data: bytes) -> None:
                entry.out += len(data)
                echoes[0].feed(data)
                stdout(data)

            def err(data: bytes) -> None:
                entry.err += len(data)
                echoes[1].feed(data)
                stderr(data)

            try:
                if leader is None:
                    code = self._execute(script, stdin=stdin, stdout=out, stderr=err, timeout=timeout)
                else:
                    leader.pass_on = err
                    code = self._execute(
                        shell.with_leader(script), stdin=stdin, stdout=out, stderr=leader, timeout=timeout
                    )
            except TimedOut:
                entry.outcome = "timeout"
                self._kill(leader)
                raise
            finally:
                if leader is not None:
                    leader.end()
                for each in echoes:
                    each.end()
            entry.outcome = f"exit {code}"
            return code

    def _kill(self, leader: shell.Leader | None) -> None:
        """Kill what is left of a command, if the guest still listens."""
        if leader is None or leader.session is None or self._connection is None or not self._connection.alive:
            return
        kill = ["sh", "-c", shell.KILL_SESSION, "sh", str(leader.session)]
        with contextlib.suppress(VirtainerError, TimedOut):
            self._connection.execute(
                shell.line(kill, sudo=self.user != "root"),
                stdin=None,
                stdout=bytes,
                stderr=bytes,
                deadline=time.monotonic() + self.scaled(_KILL_SECONDS),
                check=lambda: None,
            )

    def _signal(self, session: int, name: str) -> None:
        script = shell.KILL_SESSION if name == "KILL" else shell.SIGNAL_SESSION
        self._as_root(script, str(session), name)
