"""QEMU's command line."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from virtainer import machine
from virtainer.settings import Settings

HANDLES = machine.Handles(base=10, overlay=11, seed=12, tap=13, console=14, monitor=15, qmp=16, kvm=None)
WITH_KVM = machine.Handles(base=10, overlay=11, seed=12, tap=13, console=14, monitor=15, qmp=16, kvm=17)


def argv(base_format: str = "qcow2", handles: machine.Handles = HANDLES, **env: str) -> list[str]:
    return machine.argv(Settings.from_env(env), base_format, handles)


def values(option: str, words: list[str]) -> list[str]:
    """Return what follows each occurrence of an option."""
    return [after for word, after in pairwise(words) if word == option]


def nodes(words: list[str]) -> dict[str, dict[str, Any]]:
    return {node["node-name"]: node for node in map(json.loads, values("-blockdev", words))}


def test_settings_reach_qemu() -> None:
    words = argv(RAM="768", CPU="3", VM_NAME="alpha")
    assert values("-m", words) == ["768"]
    assert values("-smp", words) == ["3"]
    assert values("-name", words) == ["alpha,process=alpha"]


def test_the_machine_type_has_a_version() -> None:
    assert values("-machine", argv()) == ["pc-q35-10.0,sata=off,smbus=off,graphics=off,hpet=off,memory-backend=ram"]


@pytest.mark.parametrize("system", ["linux", "win7"])
def test_no_pc_has_an_hpet(system: str) -> None:
    assert "hpet=off" in values("-machine", argv(OS_VARIANT=system))[0].split(",")


def test_uefi_is_two_flash_chips_one_for_each_vm() -> None:
    words = argv(handles=HANDLES._replace(code=20, variables=21))
    assert values("-machine", words) == [
        "pc-q35-10.0,sata=off,smbus=off,graphics=off,hpet=off,memory-backend=ram,pflash0=code,pflash1=variables"
    ]
    code, variables = nodes(words)["code"], nodes(words)["variables"]
    assert (code["read-only"], code["file"]["read-only"], code["file"]["filename"]) == (True, True, "/dev/fdset/7")
    assert (variables["file"]["read-only"], variables["file"]["filename"]) == (False, "/dev/fdset/8")
    assert {"fd=20,set=7", "fd=21,set=8"} <= set(values("-add-fd", words))


def test_arm64_is_another_board_with_uefi_without_files() -> None:
    words = argv(ARCH="arm64")
    assert words[0] == "qemu-system-aarch64"
    assert values("-machine", words) == ["virt-10.0,gic-version=max,memory-backend=ram"]
    assert values("-bios", words) == ["/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"]
    assert values("-cpu", words) == ["max,pauth-impdef=on"]
    assert not {"VGA", "vmgenid,guid=auto", "pvpanic"} & set(values("-device", words))
    assert not Settings.from_env({"ARCH": "arm64"}).keeps_variables


def test_no_path_is_opened_by_qemu_itself() -> None:
    words = argv(handles=WITH_KVM)
    assert {node["file"]["filename"] for node in nodes(words).values()} == {f"/dev/fdset/{n}" for n in (1, 2, 3)}
    assert values("-add-fd", words) == ["fd=17,set=4", "fd=10,set=1", "fd=11,set=2", "fd=12,set=3"]
    assert not [word for word in words if "/" in word and "/dev/fdset/" not in word]


def test_the_guest_disk_is_read_only_and_its_backing_header_ignored() -> None:
    base = nodes(argv())["base"]
    assert (base["driver"], base["read-only"], base["file"]["read-only"]) == ("qcow2", True, True)
    assert base["backing"] is None
    assert "backing" not in nodes(argv("raw"))["base"]


@pytest.mark.parametrize(
    ("mode", "write_cache", "direct", "no_flush"),
    [
        ("writeback", "on", False, False),
        ("unsafe", "on", False, True),
        ("none", "on", True, False),
        ("writethrough", "off", False, False),
    ],
)
def test_cache_modes(mode: str, write_cache: str, direct: bool, no_flush: bool) -> None:
    words = argv(DISK_CACHE=mode)
    cache = {"direct": direct, "no-flush": no_flush}
    disk = nodes(words)["disk"]
    assert disk["cache"] == disk["file"]["cache"] == cache
    assert any(
        device.endswith(f"drive=disk,bootindex=1,write-cache={write_cache}") for device in values("-device", words)
    )


def test_a_modern_guest_gets_virtio() -> None:
    devices = {device.partition(",")[0] for device in values("-device", argv())}
    virtio = {"virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci", "virtio-tablet-pci"}
    assert devices == {*virtio, "VGA", "vmgenid", "pvpanic", "pcie-root-port"}


def test_an_old_guest_gets_ide_and_e1000_on_an_old_machine() -> None:
    words = argv(OS_VARIANT="win7")
    assert {device.partition(",")[0] for device in values("-device", words)} == {
        "ide-hd", "ide-cd", "e1000", "VGA", "vmgenid", "pvpanic"
    }  # fmt: skip
    assert values("-machine", words) == ["pc-i440fx-10.0,graphics=off,hpet=off,memory-backend=ram"]


def test_the_guest_has_the_same_mac_everywhere() -> None:
    for system in ("linux", "win7"):
        assert any("mac=52:54:00:76:69:02" in device for device in values("-device", argv(OS_VARIANT=system)))


def test_kvm_or_emulation() -> None:
    assert values("-accel", argv()) == ["tcg,thread=multi,tb-size=320"]
    assert values("-cpu", argv()) == ["max,la57=off"]
    assert values("-accel", argv(handles=WITH_KVM)) == ["kvm,device=/dev/fdset/4"]
    assert values("-cpu", argv(handles=WITH_KVM)) == ["host"]


def test_the_devices_with_names_are_those_that_count_as_built_in() -> None:
    def names(**env: str) -> set[str]:
        words = argv(handles=HANDLES._replace(port=18, line=19), **env)
        return set(re.findall(r"\bid=(\w+)", " ".join(values("-device", words))))

    assert names() == machine.BUILT_IN
    assert names(OS_VARIANT="winxp") < machine.BUILT_IN


def test_every_handle_is_inherited() -> None:
    assert HANDLES.all() == (10, 11, 12, 13, 14, 15, 16)
    assert WITH_KVM.all() == (10, 11, 12, 13, 14, 15, 16, 17)
