"""What a console shows when firmware finds nothing to boot from: after that, nothing comes any more."""

from __future__ import annotations

import time

_BIOS, _UEFI = "No bootable device", "BdsDxe: Press any key to enter the Boot Manager Menu"
_SHELL = "Shell>"  # what UEFI starts when nothing else is left
# The first sector of a disk for UEFI may say that it can be started, with nothing in it: the BIOS does so.
_STARTED = "Booting from Hard Disk..."
_QUIET_SECONDS = 30.0


class Watch:
    """Looks at what a console has shown since the guest was started, again and again, until it has booted."""

    def __init__(self, arch: str = "amd64") -> None:
        self._arch = arch
        self._last, self._since = "", time.monotonic()

    def look(self, text: str) -> str:
        """Say what is wrong with the disk, when firmware has said so last; empty: as yet nothing."""
        last = text.rstrip().rpartition("\n")[2].strip()
        if last != self._last:
            self._last, self._since = last, time.monotonic()
        if last.startswith(_BIOS):
            return f"its BIOS found nothing to boot from: {_hint('uefi')}"
        if last.startswith(_UEFI) or last == _SHELL:
            hint = f"{self._other_than_uefi()}, or only with variables that are not there"
            return f"its UEFI found nothing to boot from: {hint}"
        return ""

    def suspicion(self) -> str:
        """Say what may be wrong when nothing has come of it: what BIOS has started may be silent for good reasons."""
        quiet = time.monotonic() - self._since
        if self._last != _STARTED or quiet < _QUIET_SECONDS:
            return ""
        return f"Its BIOS has started the disk {quiet:.0f} s ago, and nothing was seen of that: {_hint('uefi')}."

    def _other_than_uefi(self) -> str:
        if self._arch == "amd64":
            return _hint("bios")
        return "a disk for another processor needs arch='amd64', else this is not one that boots by itself"


def _hint(other: str) -> str:
    return f"a disk for {other.upper()} needs firmware={other!r}, else this is not one that boots by itself"
