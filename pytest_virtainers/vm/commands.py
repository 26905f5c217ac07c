"""Commands in the guest: `run` waits for the end of one, `popen` does not."""

from __future__ import annotations

import contextlib
import io
import shlex
import time
from typing import IO, TYPE_CHECKING

from pytest_virtainers.errors import CommandFailed, CommandTimeout, VirtainerError
from pytest_virtainers.support.interruptible import TimedOut
from pytest_virtainers.vm import shell
from pytest_virtainers.vm.echo import Echo
from pytest_virtainers.vm.limited import outputs
from pytest_virtainers.vm.process import Process
from pytest_virtainers.vm.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_virtainers.vm.machine import Machine

# With KVM: for killing what is left of a command, and between asking a process to end and killing it.
_KILL_SECONDS, _GRACE_SECONDS = 3.0, 2.0


class Commands:
    """Runs commands in one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

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
        """Run a command and wait for its end, as `VM.run` documents."""
        __tracebackhide__ = True
        machine = self._machine
        data = input.encode() if isinstance(input, str) else input
        shown = command if isinstance(command, str) else shlex.join(command)
        stdout, stderr = outputs(shown, machine.name)
        shown_before = machine.console.size
        began = time.monotonic()

        def result(exit_code: int, seconds: float) -> Result:
            return Result(shown, exit_code, bytes(stdout), bytes(stderr), seconds)

        try:
            exit_code = self._perform(
                shell.line(command, sudo=sudo, user=user, env=env, cwd=cwd),
                shown,
                user or ("root" if sudo else machine.user),
                stdin=None if data is None else io.BytesIO(data),
                stdout=stdout.take,
                stderr=stderr.take,
                leader=None if timeout is None else shell.Leader(),
                timeout=timeout,
            )
        except TimedOut:
            # Without the time to kill its processes, which may take seconds.
            raise CommandTimeout(result(-1, timeout or 0), machine.name) from None
        finished = result(exit_code, time.monotonic() - began)
        if check and not finished.ok:
            raise CommandFailed(finished, machine.name, machine.console.killed_for_memory(shown_before))
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
        """Start a command and return at once, as `VM.popen` documents."""
        __tracebackhide__ = True
        machine = self._machine
        machine.ssh.connected()
        script = shell.line(command, sudo=sudo, user=user, env=env, cwd=cwd)
        shown = command if isinstance(command, str) else shlex.join(command)
        leader = shell.Leader()

        def execute(stdin: IO[bytes], stdout: Callable[[bytes], object], stderr: Callable[[bytes], object]) -> int:
            who = user or ("root" if sudo else machine.user)
            return self._perform(
                script, shown, who, stdin=stdin, stdout=stdout, stderr=stderr, leader=leader, timeout=None
            )

        process = Process(shown, machine.name, execute, leader, self._signal, grace=machine.scaled(_GRACE_SECONDS))
        machine.on_close.callback(process.abandon)
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
        """Run a shell line, log it, and echo its output if that is on; raise `TimedOut` after the timeout."""
        __tracebackhide__ = True
        machine = self._machine
        echoes = Echo(machine.name, machine.echo), Echo(machine.name, machine.echo)
        with machine.log.entry(shown, who) as entry:

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
                    code = machine.ssh.execute(script, stdin=stdin, stdout=out, stderr=err, timeout=timeout)
                else:
                    leader.pass_on = err
                    code = machine.ssh.execute(
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
        """Kill what is left of a command, if the guest still answers."""
        machine, connection = self._machine, self._machine.ssh.current
        if leader is None or leader.session is None or connection is None or not connection.alive:
            return
        kill = ["sh", "-c", shell.KILL_SESSION, "sh", str(leader.session)]
        with contextlib.suppress(VirtainerError, TimedOut):
            connection.execute(
                shell.line(kill, sudo=machine.user != "root"),
                stdin=None,
                stdout=bytes,
                stderr=bytes,
                deadline=time.monotonic() + machine.scaled(_KILL_SECONDS),
                check=lambda: None,
            )

    def _signal(self, session: int, name: str) -> None:
        script = shell.KILL_SESSION if name == "KILL" else shell.SIGNAL_SESSION
        self._machine.run_as_root(script, str(session), name)
