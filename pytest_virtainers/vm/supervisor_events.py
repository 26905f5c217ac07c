"""The events of the supervisor in a VM's container, read from its stderr.

The supervisor writes one event a line as JSON (`images/runtime/virtainer/protocol.py` has all of them). Other lines,
such as a traceback, are kept as words for error messages. What a guest or QEMU writes is only ever a text in a field,
so it can neither begin a line nor be mistaken for an event. No other module reads stderr, except to show it with
`readable`.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from pytest_virtainers.support.runtime_modules import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_virtainers.engine.output import Output

# What json.loads and a sentence's fields raise for lines that are not events.
_NO_EVENT = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
_SHOWN = 8 * 1024


class Supervisor:
    """The state of one container by its events; `wait_for` waits for new ones.

    Attributes:
        accel: `kvm` or `tcg`; empty until QEMU is started.
        restored: whether the VM's saved state was restored.
        restoring: the seconds that each part of this took, by name.
        helpers_ready: how often a helper in the guest has reported that it waits.
        helpers_done: how often one has renewed the guest's identity, or set its clock.
        off: whether the guest has switched itself off, and has not been started since.
        disk_failure: why the VM is paused since a write to its disk failed; empty if it is not.
        boot_crashes: why QEMU ended each time that it crashed while the guest booted, and was started again.
        over: why QEMU ended, of a container that stays; empty while it runs.
        reason: the word of `protocol.Reason` for the container's end; empty while it runs.
        crashed: whether QEMU itself failed.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self.accel = ""
        self.restored = False
        self.restoring: Mapping[str, float] = {}
        self.helpers_ready = self.helpers_done = 0
        self.off = self.crashed = False
        self.disk_failure = self.over = self.reason = ""
        self.boot_crashes: tuple[str, ...] = ()
        self._line: bytes | None = b""  # the beginning of the last line; None: it is not an event, whatever follows
        self._arrived = 0
        output.follow(self._add)

    def _add(self, position: int, data: bytes) -> None:
        """Read what has arrived."""
        if position != self._arrived:  # a piece is missing
            self._line = None
        self._arrived = position + len(data)
        for number, rest in enumerate(data.split(b"\n")):
            if number:
                if self._line is not None and (event := parse(self._line)):
                    self._note(event)
                self._line = b""
            if self._line is not None:
                whole = len(self._line) + len(rest)
                self._line = self._line + rest if whole <= protocol.LONGEST_EVENT else None

    def _note(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "started":
                self.accel = str(event["accel"])
            case "restored":
                self.restored = True
                parts = {"prepared": "prepared_s", "QEMU up": "qemu_s", "state": "state_s"}
                self.restoring = {part: float(event[field]) for part, field in parts.items()}
            case "helper-ready":
                self.helpers_ready += 1
            case "helper-done":
                self.helpers_done += 1
            case "guest-off" | "guest-on" as name:
                self.off = name == "guest-off"
            case "disk-failed":
                self.disk_failure = str(event["cause"])
            case "boot-crashed":
                self.boot_crashes += (str(event["detail"]),)
                self.off, self.disk_failure = False, ""
            case "over":
                self.over, self.crashed = str(event["detail"]), event.get("crashed") is True
            case "end":
                self.reason, self.crashed = str(event["reason"]), event.get("crashed") is True

    def wait_for(self, fact: Callable[[], bool], seconds: float) -> bool:
        """Wait until `fact` holds, at most `seconds` or until the container has ended; return whether it does."""
        return self._output.wait_for(fact, seconds)

    @property
    def words(self) -> str:
        """Its last lines, for people."""
        said = self._output.last(_SHOWN)
        if self._output.size > _SHOWN:  # its first line is cut
            said = said.partition(b"\n")[2] or said
        return readable(said).decode(errors="replace").strip()

    @property
    def last_words(self) -> str:
        """Its last line, for people."""
        return self.words.rpartition("\n")[2]


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line, without its end; `None` if it is something else."""
    if not line.startswith(b"{") or len(line) > protocol.LONGEST_EVENT:
        return None
    with contextlib.suppress(*_NO_EVENT):
        event: dict[str, Any] = json.loads(line)
        protocol.sentence(event)  # with all its fields, each of its type
        return event
    return None


def readable(stderr: bytes) -> bytes:
    """Return a supervisor's output for people: events as sentences, other lines as they are."""
    reader = Reader()
    return reader.feed(stderr) + reader.end()


class Reader:
    """Makes a supervisor's output readable while it arrives, in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the lines that are complete with the next piece."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        shown = b"".join(_readable(line) + b"\n" for line in lines)
        return shown + self.end() if len(self._rest) > protocol.LONGEST_EVENT else shown  # this is not an event

    def end(self) -> bytes:
        """Return the last line, which has no end."""
        rest, self._rest = self._rest, b""
        return _readable(rest)


def _readable(line: bytes) -> bytes:
    event = parse(line)
    return line if event is None else protocol.sentence(event).encode()
