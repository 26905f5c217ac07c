"""What a console shows when firmware finds nothing to boot from: after that, nothing comes any more."""

from __future__ import annotations

import time

_NOTHING_FOUND = {
    "No bootable device": "BIOS",
    "BdsDxe: No bootable option or device was found": "UEFI",
    "| Shell> \n": "UEFI",  # what it starts when nothing else is left
}
# The first sector of a disk for UEFI may say that it can be started, with nothing in it: the BIOS does so.
_STARTED = "Booting from Hard Disk..."


class Watch:
    """Looks at the last lines of a console, again and again, until the guest has booted.

    Args:
        seconds: how long a BIOS may wait for what it has started to say something.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lines, self._since = "", time.monotonic()

    def complaint(self, lines: str) -> str:
        """Say what is wrong with the disk; empty: as yet nothing."""
        now = time.monotonic()
        if lines != self._lines:
            self._lines, self._since = lines, now
        for saying, firmware in _NOTHING_FOUND.items():
            if saying in f"{lines}\n":
                other = "uefi" if firmware == "BIOS" else "bios"
                return f"its {firmware} found nothing to boot from: {_hint(other)}"
        if lines.rstrip().endswith(_STARTED) and now - self._since > self._seconds:
            return (
                f"its BIOS has started what is in the first sector of the disk, and nothing came of that in "
                f"{self._seconds:g} s: {_hint('uefi')}"
            )
        return ""


def _hint(other: str) -> str:
    return f"a disk for {other.upper()} needs firmware={other!r}, else this is not one that boots by itself"
