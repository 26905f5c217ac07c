"""Signs on a console that firmware found nothing to boot from: nothing follows them."""

from __future__ import annotations

import time

_BIOS, _UEFI = "No bootable device", "BdsDxe: Press any key to enter the Boot Manager Menu"
_SHELL = "Shell>"  # what UEFI starts when nothing else is left
# The first sector of a disk for UEFI may be marked as bootable although it is empty; the BIOS then starts it.
_STARTED = "Booting from Hard Disk..."
_QUIET_SECONDS = 30.0


class Watch:
    """Checks what a console has shown since the guest was started, until it has booted."""

    def __init__(self, arch: str = "amd64") -> None:
        self._arch = arch
        self._last, self._since = "", time.monotonic()

    def look(self, text: str) -> str:
        """Return what is wrong with the disk, if firmware reported that last; empty if not."""
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
        """Return what may be wrong after a timeout; what the BIOS has started may be silent for good reasons."""
        quiet = time.monotonic() - self._since
        if self._last != _STARTED or quiet < _QUIET_SECONDS:
            return ""
        return f"Its BIOS started the disk {quiet:.0f} s ago, which has shown nothing since: {_hint('uefi')}."

    def _other_than_uefi(self) -> str:
        if self._arch == "amd64":
            return _hint("bios")
        return "a disk for another processor needs arch='amd64'; otherwise this disk is not bootable"


def _hint(other: str) -> str:
    return f"a disk for {other.upper()} needs firmware={other!r}; otherwise this disk is not bootable"
