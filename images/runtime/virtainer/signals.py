"""Requests from outside to a running virtainer: signals, and the end of the lease on its stdin.

While the VM is being prepared a request ends the supervisor at once; when QEMU runs, requests are queued in a pipe
that the supervisor's loop reads.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

from virtainer.exit_reasons import End, Reason

if TYPE_CHECKING:
    from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT)
LEASE_GONE = signal.SIGUSR1  # sent by this process, so that there is one queue for all requests

LEASE_END = "the holder of the lease, the container's stdin, has ended (without docker run -i there is none)"


def end_at_once() -> None:
    """Raise End when a request arrives, whatever the supervisor is doing, from now on."""
    for number in (*STOP, LEASE_GONE):
        signal.signal(number, _raise)


def _raise(number: int, _frame: FrameType | None) -> None:
    if number == LEASE_GONE:
        raise End(Reason.LEASE, LEASE_END)
    raise End(Reason.STOPPED, f"{signal.Signals(number).name} came before the VM ran")


def queue() -> int:
    """Return a pipe with a byte (the signal's number) for each request, and each death of a child, from now on."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (*STOP, LEASE_GONE, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader


def watch_lease(stdin: int = 0) -> None:
    """Request the end when stdin ends. Its content is ignored."""
    main = threading.main_thread().ident or 0

    def watch() -> None:
        try:
            while os.read(stdin, 4096):
                pass
        except OSError:  # a terminal that hangs up
            pass
        signal.pthread_kill(main, LEASE_GONE)

    threading.Thread(target=watch, daemon=True).start()
