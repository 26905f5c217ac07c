"""A command that runs in the guest while the test continues."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import IO, TYPE_CHECKING

from pytest_virtainers.errors import CommandTimeout, VirtainerError
from pytest_virtainers.support.forks import Owner, disown_in_child
from pytest_virtainers.vm.limited import outputs
from pytest_virtainers.vm.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.vm.limited import Collected
    from pytest_virtainers.vm.shell import Leader

_START_SECONDS = 60.0
_END_SECONDS = 30.0


class Process:
    """A running command, which `VM.popen` returns.

    As a context manager it ends with the block: by SIGTERM, or 2 s later (20 s without KVM) by SIGKILL.

    Attributes:
        command: the command, as one line.
        stdin: the standard input, for bytes; closing it ends the input.
    """

    def __init__(
        self,
        command: str,
        vm_name: str,
        execute: Callable[[IO[bytes], Callable[[bytes], object], Callable[[bytes], object]], int],
        leader: Leader,
        send_signal: Callable[[int, str], object],
        *,
        grace: float,
    ) -> None:
        """Start the command.

        Args:
            command: the command, as one line.
            vm_name: the VM's name, for messages.
            execute: runs the command with standard input, output and error, and returns its exit code.
            leader: finds out the command's session.
            send_signal: sends a signal, by its name, to a session.
            grace: seconds between SIGTERM and SIGKILL at the end of a block.
        """
        self.command = command
        self._vm_name = vm_name
        self._execute = execute
        self._send_signal = send_signal
        self._grace = grace
        self._stdout, self._stderr = outputs(command, vm_name)
        self._exit_code: int | None = None
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._leader = leader
        self._began = time.monotonic()
        self._ended: float | None = None
        self._read = 0
        reader, writer = os.pipe()
        self.stdin: IO[bytes] = os.fdopen(writer, "wb", buffering=0)
        # Unbuffered: a buffered reader would wait for a whole chunk.
        source = os.fdopen(reader, "rb", buffering=0)
        self._owner = Owner(f"{command!r} on {vm_name}", "Use a thread.")
        disown_in_child(self)
        threading.Thread(target=self._follow, args=(source,), daemon=True).start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the command: SIGTERM, then SIGKILL for all its processes if it still runs after a moment."""
        __tracebackhide__ = True
        try:
            if not self._over:
                self._end()
        except (VirtainerError, CommandTimeout):  # this must not hide an exception of the block
            if kind is None:
                raise
        finally:
            self.abandon()

    def _end(self) -> None:
        __tracebackhide__ = True
        self.terminate()
        try:
            self.wait(self._grace)
        except CommandTimeout:
            self.kill()
            self.wait(_END_SECONDS)

    def lines(self, timeout: float | None = None) -> Iterator[str]:
        """Yield the lines of standard output that were not read yet, each as soon as it is complete.

        Args:
            timeout: seconds to wait for each line; `None`: no limit.

        Raises:
            CommandTimeout: no line came in time.
            VMGone, GuestPanic, SSHError: the machine ended, or the connection broke.

        Example:
            `assert "ready" in next(process.lines(timeout=10))`
        """
        __tracebackhide__ = True
        while True:
            with self._changed:
                ready = self._changed.wait_for(
                    lambda: self._stdout.find(b"\n", self._read) >= 0 or self._over, timeout
                )
                if not ready:
                    raise CommandTimeout(self._result(-1), self._vm_name)
                if self._read == len(self._stdout):
                    break
                newline = self._stdout.find(b"\n", self._read)
                end = newline if newline >= 0 else len(self._stdout)
                line = bytes(self._stdout[self._read : end])
                self._read = min(end + 1, len(self._stdout))
            yield line.decode("utf-8", "surrogateescape")
        self._raise_failure()

    def write(self, data: str | bytes) -> None:
        """Write to standard input; text is encoded as UTF-8."""
        self.stdin.write(data.encode() if isinstance(data, str) else data)

    def poll(self) -> int | None:
        """Return the exit code, or `None` while the command runs; raise as `wait` if the machine ended."""
        __tracebackhide__ = True
        self._raise_failure()
        return self._exit_code

    def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end of the command; return its result, with all output.

        Args:
            timeout: seconds; `None`: no limit. The command continues after them.

        Raises:
            CommandTimeout: the command still runs.
            VMGone, GuestPanic, SSHError: the machine ended, or the connection broke.
        """
        __tracebackhide__ = True
        with self._changed:
            if not self._changed.wait_for(lambda: self._over, timeout):
                raise CommandTimeout(self._result(-1), self._vm_name)
        self._raise_failure()
        return self._result(-1 if self._exit_code is None else self._exit_code)

    def send_signal(self, number: int | str) -> None:
        """Send a signal to all processes of the command.

        Args:
            number: `signal.SIGUSR1`, or its name `"USR1"`.

        Raises:
            VirtainerError: it could not be sent.
        """
        __tracebackhide__ = True
        name = number if isinstance(number, str) else signal.Signals(number).name
        with self._changed:
            known = self._changed.wait_for(lambda: self._leader.session is not None or self._over, _START_SECONDS)
        if not known:
            raise VirtainerError(f"{self.command!r} on {self._vm_name}: its shell did not report its session")
        if self._leader.session is not None and not self._over:
            self._send_signal(self._leader.session, name.removeprefix("SIG"))

    def terminate(self) -> None:
        """Send SIGTERM to all processes of the command."""
        __tracebackhide__ = True
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to all processes of the command."""
        __tracebackhide__ = True
        self.send_signal(signal.SIGKILL)

    def disown(self) -> None:
        """Leave the command to a forked child's parent, and close the child's copy of its input."""
        self._changed = threading.Condition()
        self.abandon()
        if not self._over:
            self._failure = self._owner.refusal()

    def abandon(self) -> None:
        """Close the standard input."""
        with contextlib.suppress(OSError):
            self.stdin.close()

    @property
    def _over(self) -> bool:
        return self._exit_code is not None or self._failure is not None

    def _add(self, kept: Collected) -> Callable[[bytes], None]:
        def add(data: bytes) -> None:
            with self._changed:
                kept.take(data)
                self._changed.notify_all()

        return add

    def _follow(self, stdin: IO[bytes]) -> None:
        failure: BaseException | None = None
        code: int | None = None
        try:
            with stdin:
                code = self._execute(stdin, self._add(self._stdout), self._add(self._stderr))
        except BaseException as error:  # noqa: BLE001  (`wait` and `lines` raise it)
            failure = error
        with self._changed:
            self._exit_code, self._failure, self._ended = code, failure, time.monotonic()
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        __tracebackhide__ = True
        if self._failure is not None:
            raise self._failure

    def _result(self, code: int) -> Result:
        duration = (self._ended or time.monotonic()) - self._began
        return Result(self.command, code, bytes(self._stdout), bytes(self._stderr), duration)
