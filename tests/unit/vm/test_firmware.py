"""Hints about firmware from the last line of a console."""

import time

import pytest

from pytest_virtainers.vm import firmware

BIOS, UEFI = (
    "its BIOS found nothing to boot from: a disk for UEFI",
    "its UEFI found nothing to boot from: a disk for BIOS",
)


@pytest.mark.parametrize(
    ("last", "complaint"),
    [
        ("No bootable device.  Retrying in 1 seconds.", BIOS),
        ("BdsDxe: Press any key to enter the Boot Manager Menu.", UEFI),
        ("Shell> ", UEFI),
    ],
)
def test_firmware_without_a_bootable_disk_is_recognized(last: str, complaint: str) -> None:
    watch = firmware.Watch()
    assert watch.look("SeaBIOS (version 1.16.3)") == ""
    assert watch.look(f"SeaBIOS (version 1.16.3)\n{last}\r\n\r\n").startswith(complaint)
    assert watch.look(f"{last}\n[    0.000000] Linux version 6.12") == "", "the boot continues"


def test_another_processor_has_no_bios() -> None:
    message = firmware.Watch("arm64").look("Shell>")
    assert message.startswith(
        "its UEFI found nothing to boot from: a disk for another processor needs arch='amd64'; otherwise"
    )


def test_a_silent_disk_is_only_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = firmware.Watch()
    text = "SeaBIOS (version 1.16.3)\nBooting from Hard Disk..."
    assert watch.look(text) == ""
    now = 110.0
    assert watch.suspicion() == "", "it may be slow"
    now = 161.0
    assert watch.look(text) == ""
    assert watch.suspicion().startswith(
        "Its BIOS started the disk 61 s ago, which has shown nothing since: a disk for"
    )
    watch.look(f"{text}\nGRUB loading.")
    now = 300.0
    assert watch.suspicion() == ""
