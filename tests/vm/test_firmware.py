"""Firmware that VMs boot from, and the messages when they cannot."""

import struct
from pathlib import Path

import pytest

from pytest_virtainers import VM
from pytest_virtainers.config.settings import Settings
from pytest_virtainers.config.spec import check, merge
from pytest_virtainers.errors import BootError
from pytest_virtainers.launching.launcher import Launcher


@pytest.mark.virtainer("uefi", ram="768M", firmware="uefi")
def test_a_uefi_clone_reboots_with_its_name_and_variables(vm: VM) -> None:
    assert vm.run("ls /sys/firmware/efi").stdout
    vm.run("modprobe efivarfs; mount -t efivarfs none /sys/firmware/efi/efivars", sudo=True)
    name = "/sys/firmware/efi/efivars/Mark-12345678-1234-1234-1234-123456789abc"
    vm.run(["tee", name], input=b"\7\0\0\0mark", sudo=True)
    vm.write_text("/root/mark", "kept")
    vm.reboot()
    assert vm.run("hostname").stdout == "uefi\n"
    assert vm.read_text("/root/mark") == "kept"
    vm.run("mount -t efivarfs none /sys/firmware/efi/efivars", sudo=True)
    assert vm.run(["cat", name], sudo=True).stdout_bytes == b"\7\0\0\0mark", "its variables are not shared"


@pytest.mark.parametrize(
    ("machine", "other"),
    [
        ({"firmware": "bios"}, "firmware='uefi'"),
        ({"firmware": "uefi"}, "firmware='bios'"),
        ({"arch": "arm64"}, "arch='amd64'"),
    ],
    ids=["bios", "uefi", "arm64"],
)
def test_a_disk_for_other_firmware_is_reported_at_once(
    launcher: Launcher, settings: Settings, tmp_path: Path, machine: dict[str, str], other: str
) -> None:
    disk = tmp_path / "empty.raw"
    gives_up = b"\xcd\x18"  # int 0x18, back to the BIOS; without a program, the test would have to wait
    disk.write_bytes(gives_up + bytes(508) + b"\x55\xaa" + bytes(2**20 - 512))
    wanted = {"image": str(disk), "ram": "256M", "template": False, **machine}
    spec = merge(settings.shape, check(wanted, "here"))
    with pytest.raises(BootError, match=f"found nothing to boot from: .* needs {other}; otherwise"):
        launcher.launch(spec)
    assert not launcher.failed.vms


@pytest.mark.thorough
@pytest.mark.virtainer("desk", image="debian-13-desktop", firmware="uefi", ram="1G", disk="10G")
def test_a_desktop_is_drawn_with_uefi(vm: VM, tmp_path: Path) -> None:
    vm.wait_until_succeeds("DISPLAY=:0 xdotool search --onlyvisible --name Welcome")
    assert vm.run("DISPLAY=:0 xdotool getdisplaygeometry").stdout == "1280 800\n"
    picture = vm.screen.screenshot(tmp_path / "screen.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1280, 800)
