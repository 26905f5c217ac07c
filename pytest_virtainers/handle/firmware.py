"""What firmware says on the serial line when it finds nothing to boot from; after that it waits for ever."""

from __future__ import annotations

_BIOS, _UEFI = "No bootable device", "BdsDxe: No bootable option or device was found"


def complaint(lines: str) -> str:
    """Say what is wrong with the disk by the last lines of the console; empty: as yet nothing."""
    if _UEFI in lines:
        return (
            "its UEFI found nothing to boot from. The disk of a BIOS machine needs firmware='bios'; else this is not "
            "one that boots by itself"
        )
    if _BIOS in lines:
        return (
            "its BIOS found nothing to boot from. The disk of a UEFI machine needs firmware='uefi'; else this is not "
            "one that boots by itself"
        )
    return ""
