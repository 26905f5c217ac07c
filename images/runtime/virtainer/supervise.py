"""The supervisor's loop from QEMU's start to its end: signals, QEMU's events and errors, and dead children."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import time
from typing import IO, TYPE_CHECKING, Any

from virtainer import signals, snapshot
from virtainer.events import RateLimit, report
from virtainer.exit_reasons import End, Reason
from virtainer.protocol import SSH_DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtainer.qmp import Monitor

# A power button pressed before the guest listens is lost, so it is pressed again.
_PRESS_AGAIN = 5.0  # seconds
# SeaBIOS answers a guest's reset with one of its own: two within this time are one reboot.
_ONE_REBOOT = 2.0  # seconds
# A reset guest boots for so long at least, when it is emulated. With time it has more to lose than this boot.
_BOOT_SECONDS = 60.0
# For QEMU to write out its disk caches when it quits.
_QUIT_TIME = 5.0  # seconds
_LONGEST_LINE = 2000  # bytes of QEMU's stderr
_AS_ASKED = "the guest shut down as requested"
_CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}


class Supervisor:
    """Watches one running QEMU."""

    def __init__(
        self,
        *,
        qemu: int,
        stderr: IO[bytes],
        dnsmasq: int,
        dnsmasq_log: str,
        monitor: Monitor,
        monitor_fd: int,
        queue: int,
        grace: float,
        linger: bool,
        on_snapshot: Sequence[Callable[[str, str], None]],
        on_line_closed: Callable[[], None],
    ) -> None:
        """Watch QEMU's process and pipes from now on.

        Args:
            qemu: QEMU's process id.
            stderr: QEMU's stderr.
            dnsmasq: the process id of dnsmasq.
            dnsmasq_log: the path of its log.
            monitor: the supervisor's QMP connection.
            monitor_fd: the descriptor of that.
            queue: the pipe with signals (`signals.queue`).
            grace: seconds for the guest to shut down.
            linger: do not end when the guest switches itself off: QEMU pauses, and may reset and resume.
            on_snapshot: each is called with action (`save`, `load`) and name when the guest resumes after a snapshot.
            on_line_closed: called when the guest has closed its end of the SSH session's port.
        """
        self._qemu, self._monitor, self._grace = qemu, monitor, grace
        self._dnsmasq, self._dnsmasq_log = dnsmasq, dnsmasq_log
        self._stderr, self._queue, self._on_snapshot = stderr, queue, on_snapshot
        self._on_line_closed = on_line_closed
        self._last_words, self._unfinished = "", b""
        # A guest can cause these events as often as it likes.
        self._of_qemu = RateLimit("qemu", at_once=100, a_second=10)
        self._of_guest = RateLimit("guest", at_once=20, a_second=1)
        self._linger = linger
        self._off = False
        self._status: int | None = None  # as os.waitpid gives it
        self._shutdown: dict[str, Any] = {}  # QEMU's last SHUTDOWN event
        self._request = ""  # the current one: "", "stop" or "kill"
        self._cause = ""
        self._lease_gone = False
        self._rebooted = self._reset = float("-inf")
        self._deadline = self._press_at = float("inf")
        self._selector = selectors.DefaultSelector()
        self._on(queue, self._read_requests)
        self._on(monitor_fd, self._read_events)
        self._on(stderr.fileno(), self._read_last_words)

    @property
    def booting(self) -> bool:
        """Whether the guest was reset a moment ago, and is meant to run: QEMU's end costs it this boot alone."""
        return not self._request and time.monotonic() < self._reset + _BOOT_SECONDS

    def run(self) -> End:
        """Return when the VM has ended, or has to end."""
        with self._selector:
            return self._run()

    def _run(self) -> End:
        while self._status is None:
            wake = min(self._deadline, self._press_at) - time.monotonic()
            for key, _ in self._selector.select(None if wake == float("inf") else max(0.0, wake)):
                key.data()
            if self._lease_gone:
                return End(Reason.LEASE, signals.LEASE_END)  # the VM's owner has ended: nothing to save
            if time.monotonic() >= self._deadline:
                if self._request == "kill":
                    return End(Reason.KILLED, f"{self._cause}, and QEMU did not quit in {_QUIT_TIME:g} s")
                self._kill(f"the guest did not shut down in {self._grace:g} s")
            elif time.monotonic() >= self._press_at:
                self._press_power_button()
        for read in (self._read_events, self._read_last_words):  # QEMU's last words
            with contextlib.suppress(EOFError):
                while True:
                    read()
        if self._request == "kill":
            return End(Reason.KILLED, self._cause)
        if self._request == "stop" and self._off:
            return End(Reason.STOPPED, _AS_ASKED)
        return outcome(self._status, self._shutdown, self._last_words, asked=self._request == "stop")

    def _on(self, fd: int, read: Callable[[], None]) -> None:
        def until_the_end() -> None:
            try:
                read()
            except (EOFError, OSError):
                self._selector.unregister(fd)

        self._selector.register(fd, selectors.EVENT_READ, until_the_end)

    def _read_requests(self) -> None:
        for number in os.read(self._queue, 4096):
            if number == signals.LEASE_GONE:
                self._lease_gone = True
            elif number == signal.SIGCHLD:
                self._reap()
            elif self._off:
                self._request = "stop"
                self._quit()
            elif self._request or not self._grace:
                self._kill(f"{signal.Signals(number).name} came" + (" again" if self._request else ", without grace"))
            else:
                report("stopping", signal=signal.Signals(number).name, grace_s=self._grace)
                self._request = "stop"
                self._deadline = time.monotonic() + self._grace
                self._press_power_button()

    def _press_power_button(self) -> None:
        self._press_at = time.monotonic() + _PRESS_AGAIN
        self._send("system_powerdown")

    def _kill(self, cause: str) -> None:
        if self._request == "kill":
            return
        self._request, self._cause = "kill", cause
        self._quit()

    def _quit(self) -> None:
        self._deadline, self._press_at = time.monotonic() + _QUIT_TIME, float("inf")
        self._send("quit")

    def _send(self, command: str) -> None:
        with contextlib.suppress(OSError):  # QEMU has just ended
            self._monitor.send({"execute": command})

    def _reap(self) -> None:
        """Collect every dead child. As PID 1 we inherit orphans, such as those of `docker exec`."""
        with contextlib.suppress(ChildProcessError):
            while (death := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = death
                if pid == self._qemu:
                    self._status = status
                elif pid == self._dnsmasq:
                    report("dns-ended", code=os.waitstatus_to_exitcode(status), log=self._dnsmasq_log)

    def _read_events(self) -> None:
        for message in self._monitor.receive():
            event, data = message.get("event"), message.get("data", {})
            if event == "SHUTDOWN":
                self._shutdown = data
                if self._linger and data.get("guest"):
                    self._switched_off()
            elif event == "RESUME" and self._off:
                self._off = False
                report("guest-on")
            elif event == "JOB_STATUS_CHANGE" and (done := snapshot.finished(data)):
                self._resumed_after_snapshot(*done)
            elif event == "VSERPORT_CHANGE" and data["id"] == SSH_DEVICE and not data["open"]:
                self._on_line_closed()
            elif event == "GUEST_PANICKED":
                self._of_guest.report("guest-panicked")
            elif event == "RESET":
                self._reset = time.monotonic()
                if data.get("guest"):
                    if time.monotonic() > self._rebooted + _ONE_REBOOT:
                        self._of_guest.report("guest-rebooted")
                    self._rebooted = time.monotonic()
            elif event == "BLOCK_IO_ERROR" and data.get("action") == "stop":
                report(
                    "disk-failed",
                    cause="no space left in IMAGE_DIR" if data.get("nospace") else str(data.get("reason")),
                )

    def _resumed_after_snapshot(self, action: str, name: str) -> None:
        if action == "load":
            self._reset = float("-inf")  # its memory is not that of a boot
        for call in self._on_snapshot:
            call(action, name)

    def _switched_off(self) -> None:
        """Handle that the guest has switched itself off; QEMU is about to pause."""
        self._off = True
        report("guest-off")
        if self._request == "stop":
            self._quit()

    def _read_last_words(self) -> None:
        data = os.read(self._stderr.fileno(), 65536)
        if not data:
            raise EOFError
        *words, unfinished = (self._unfinished + data).split(b"\n")
        self._unfinished = unfinished[:_LONGEST_LINE]
        for each in words:
            self._last_words = each[:_LONGEST_LINE].decode(errors="replace")
            self._of_qemu.report("qemu", line=self._last_words)


def linger(end: End, queue: int) -> None:
    """Wait for a signal if the VM has ended by itself: its disk and console are evidence."""
    if end.reason not in {Reason.POWERED_OFF, Reason.QEMU, Reason.STORAGE}:
        return
    report("over", detail=str(end), crashed=end.crashed)
    while True:
        select.select([queue], [], [])
        if any(number != signal.SIGCHLD for number in os.read(queue, 4096)):
            return
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def outcome(status: int, shutdown: dict[str, Any], last_words: str, *, asked: bool) -> End:
    """Return why QEMU ended, from its wait status, its last SHUTDOWN event and its last line on stderr.

    Reasons of shutdowns: https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html, ShutdownCause.
    """
    code = os.waitstatus_to_exitcode(status)
    if code == 0 and shutdown.get("guest"):
        if asked:
            return End(Reason.STOPPED, _AS_ASKED)
        return End(Reason.POWERED_OFF, "the guest switched itself off")
    if code == 0 and shutdown.get("reason") == "host-qmp-quit":
        return End(Reason.QUIT, "a QMP command ended QEMU")
    if code == -signal.SIGKILL:
        return End(
            Reason.QEMU, "QEMU was killed (SIGKILL): has the container too little memory for RAM and QEMU's own?"
        )
    if code == -signal.SIGBUS:  # a write to a mapped file for which there is no room
        return End(Reason.STORAGE, "QEMU could not write its memory file (SIGBUS): no space left in IMAGE_DIR")
    how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    words = last_words or shutdown.get("reason") or "without a message"
    return End(Reason.QEMU, f"QEMU ended by itself ({how}): {words}", crashed=-code in _CRASHES)
