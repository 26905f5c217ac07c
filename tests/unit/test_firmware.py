"""What the last lines of a console say about firmware."""

import time

import pytest

from pytest_virtainers.handle import firmware

STARTED = "  | SeaBIOS (version 1.16.3)\n  | Booting from Hard Disk..."


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            "No bootable device.  Retrying in 1 seconds.",
            "its BIOS found nothing to boot from: a disk for UEFI needs firmware='uefi', ",
        ),
        (
            "BdsDxe: No bootable option or device was found.",
            "its UEFI found nothing to boot from: a disk for BIOS needs firmware='bios', ",
        ),
        ("Shell> ", "its UEFI found nothing to boot from: "),
        ("[    0.000000] Linux version 6.12", ""),
    ],
)
def test_firmware_that_finds_nothing(line: str, complaint: str) -> None:
    said = firmware.Watch(60).complaint(f"  | a\n  | {line}")
    assert said.startswith(complaint)
    assert bool(said) == bool(complaint)


def test_an_empty_first_sector_is_started_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = firmware.Watch(60)
    now = 200.0
    assert watch.complaint("  | SeaBIOS (version 1.16.3)") == ""
    assert watch.complaint(STARTED) == ""
    now = 259.0
    assert watch.complaint(STARTED) == ""
    now = 261.0
    assert "nothing came of that in 60 s: a disk for UEFI needs" in watch.complaint(STARTED)
    assert watch.complaint(f"{STARTED}\n  | GRUB loading.") == ""
