"""What the supervisor in a VM's container has said, as facts.

It speaks on the container's stderr, one event a line (`images/runtime/virtainer`: run.py, supervise.py,
clone_agent.py, exit_reasons.py). A guest can make it quote foreign words. So each whole line is compared with a whole
sentence, never searched, and the supervisor lets no foreign word begin a line. No other module reads stderr but to
show it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_virtainers.engine.output import Output

_SECONDS = r"\d+\.\d+ s"
_SENTENCES = {
    name: re.compile(f"virtainer: {sentence}")
    for name, sentence in {
        "started": r"starting [A-Za-z0-9-]+: \d+ MiB, \d+ CPU, (?P<accel>kvm|tcg), .*",
        "restored": rf"clone restored: (?P<parts>prepared in {_SECONDS}, QEMU up in {_SECONDS}, state in {_SECONDS})",
        "helper-ready": "helper: ready",
        "helper-done": r"helper: individual, hostname \S+, clock [+-]\d+\.\d ms",
        "guest-off": "guest switched itself off",
        "guest-on": "guest runs again",
        "disk-failed": r"guest paused, its disk failed: (?P<cause>.*?)\. Mend it, then: .*",
        "over": r"over: (?P<detail>.*)",
        "end": r"end: (?P<reason>[a-z-]+): (?P<detail>.*)",
    }.items()
}
_CRASH = re.compile(r"QEMU ended by itself \(SIG(ABRT|SEGV|ILL|FPE|TRAP)\)")
_PART = re.compile(r"(\w[\w ]*) in ([\d.]+) s")
_LONGEST_LINE = 64 * 1024
_SHOWN = 8 * 1024


def event(line: bytes) -> tuple[str, Mapping[str, str]] | None:
    """Return name and details of the event that a line stands for; None when it stands for none."""
    text = line.decode(errors="replace")
    for name, sentence in _SENTENCES.items():
        if said := sentence.fullmatch(text):
            return name, said.groupdict()
    return None


class Supervisor:
    """The facts about one container; `wait_for` waits for new ones.

    Attributes:
        accel: `kvm` or `tcg`; empty as long as it has not started QEMU.
        restored: whether the VM's saved state was restored.
        restoring: the seconds that parts of this took, by their names.
        helpers_ready: how often a helper in the guest has said that it waits.
        helpers_done: how often one has made the guest an individual, or put its clock right.
        off: whether the guest has switched itself off, and does not run again.
        disk_failure: why the VM stands still since its disk could not be written; empty when it does not.
        over: why QEMU is over, of a container that stays; empty as long as it runs.
        reason: the word for why the container ends; empty as long as it does not.
        crashed: whether QEMU itself has failed.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self.accel = ""
        self.restored = False
        self.restoring: Mapping[str, float] = {}
        self.helpers_ready = self.helpers_done = 0
        self.off = self.crashed = False
        self.disk_failure = self.over = self.reason = ""
        self._line: bytes | None = b""  # what has come of the last line; None: only its end will come
        self._arrived = 0
        output.follow(self._add)

    def _add(self, position: int, data: bytes) -> None:
        """Take what has arrived."""
        if position != self._arrived:  # of a line that was cut, nothing is known
            self._line = None
        self._arrived = position + len(data)
        for number, rest in enumerate(data.split(b"\n")):
            if number:
                self._end_of_line()
            if self._line is not None:
                self._line = self._line + rest if len(self._line) + len(rest) <= _LONGEST_LINE else None

    def _end_of_line(self) -> None:
        line, self._line = self._line, b""
        if line is not None and (told := event(line)):
            self._note(*told)

    def _note(self, name: str, details: Mapping[str, str]) -> None:
        match name:
            case "started":
                self.accel = details["accel"]
            case "restored":
                self.restored = True
                self.restoring = {part: float(took) for part, took in _PART.findall(details["parts"])}
            case "helper-ready":
                self.helpers_ready += 1
            case "helper-done":
                self.helpers_done += 1
            case "guest-off" | "guest-on":
                self.off = name == "guest-off"
            case "disk-failed":
                self.disk_failure = details["cause"]
            case "over":
                self.over = details["detail"]
                self.crashed = bool(_CRASH.match(self.over))
            case "end":
                self.reason = details["reason"]
                self.crashed = self.reason == "qemu-failed" and bool(_CRASH.match(details["detail"]))

    def wait_for(self, fact: Callable[[], bool], seconds: float) -> bool:
        """Wait until `fact` holds, at most `seconds` or until the container has ended; return whether it does."""
        return self._output.wait_for(fact, seconds)

    @property
    def words(self) -> str:
        """The last that it has said, for people."""
        return self._output.last(_SHOWN).decode(errors="replace").strip()

    @property
    def last_words(self) -> str:
        """Its last line, for people."""
        return self.words.rpartition("\n")[2]
