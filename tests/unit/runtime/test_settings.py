"""The environment variables of the runtime contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from virtainer.exit_reasons import End, Reason
from virtainer.settings import Settings


def test_defaults_are_those_of_the_contract() -> None:
    assert Settings.from_env({}) == Settings(
        ram=1024,
        cpus=1,
        name="vm",
        virtio=True,
        arch="amd64",
        disk_size=40 * 2**30,
        image_dir=Path("/mounted"),
        seed_iso=Path("/cloud_init.iso"),
        cidr="192.168.100",
        image_url="",
        accel="auto",
        firmware="bios",
        lease=False,
        linger=False,
        cache="writeback",
        shutdown_timeout=60,
        template=None,
        template_save=False,
        resume=None,
        closed_networks=(),
        closed_hosts=(),
        closed_gateway=True,
        names_only=False,
    )


def test_arm64_boots_from_uefi_and_virtio_only() -> None:
    assert Settings.from_env({"ARCH": "arm64"}).firmware == "uefi"
    for name, value, allowed in (
        ("FIRMWARE", "bios", "uefi with ARCH=arm64"),
        ("OS_VARIANT", "win10", "a system that boots from virtio disks with ARCH=arm64"),
    ):
        with pytest.raises(End) as caught:
            Settings.from_env({"ARCH": "arm64", name: value})
        assert str(caught.value) == f"{name}={value!r}: allowed is {allowed}"


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({"RAM": "", "CIDR": ""}) == Settings.from_env({})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("RAM", "1G", "a whole number of MiB, from 32"),
        ("RAM", "-1", "a whole number of MiB, from 32"),
        ("RAM", "16", "a whole number of MiB, from 32"),
        ("RAM", "٣٢٣٢", "a whole number of MiB, from 32"),  # digits, but no ASCII
        ("FIRMWARE", "UEFI", "bios or uefi with ARCH=amd64"),
        ("ARCH", "aarch64", "amd64 or arm64"),
        ("CPU", "0", "a whole number from 1 to 255"),
        ("CPU", "two", "a whole number from 1 to 255"),
        ("VM_NAME", "my_vm", "a host name without dots"),
        ("VM_NAME", "a,b=c", "a host name without dots"),
        ("VM_NAME", "a" * 64, "a host name without dots"),
        ("OS_VARIANT", "Windows 10", "a name as libosinfo writes it"),
        ("DISK_SIZE", "40 apples", "a size such as 512M, 40G or 1T"),
        ("DISK_SIZE", "0", "a size such as 512M, 40G or 1T"),
        ("DISK_SIZE", "1024", "a size such as 512M, 40G or 1T"),
        ("IMAGE_DIR", "mounted", "an absolute path"),
        ("CLOUD_INIT_DISK", "seed.iso", "an absolute path"),
        ("CIDR", "192.168.100.0/24", "the first three octets of a private /24"),
        ("CIDR", "192.168.256", "the first three octets of a private /24"),
        ("CIDR", "127.0.0", "the first three octets of a private /24"),
        ("CIDR", "8.8.8", "the first three octets of a private /24"),
        ("CIDR", "250.0.0", "the first three octets of a private /24"),
        ("IMAGE_URL", "ftp://host/disk", "an http:// or https:// address"),
        ("IMAGE_URL", "/disk.qcow2", "an http:// or https:// address"),
        ("ACCEL", "xen", "auto, kvm or tcg"),
        ("LEASE", "yes", "off or stdin"),
        ("DISK_CACHE", "fast", "writeback, none, writethrough, directsync, unsafe"),
        ("SHUTDOWN_TIMEOUT", "1m", "whole seconds, from 0 to 86400"),
        ("CLOSED_NETWORKS", "10.0.0.0/8;", "networks with commas between them"),
        ("CLOSED_NETWORKS", "10.0.0.1/8", "networks with commas between them"),
        ("CLOSED_HOSTS", "10.0.0.0/8", "addresses with commas between them"),
        ("CLOSED_HOSTS", "10.0.0.1,", "addresses with commas between them"),
        ("CLOSED_HOSTS", "fe80::1%eth0", "addresses with commas between them"),
        ("DNS", "none", "engine or names"),
        ("EVENTS", "JSON", "text or json"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str, allowed: str) -> None:
    with pytest.raises(End) as caught:
        Settings.from_env({name: value})
    assert caught.value.reason is Reason.SETTING
    assert str(caught.value).startswith(f"{name}={value!r}: allowed is {allowed}")


def test_lists_of_networks_and_addresses() -> None:
    settings = Settings.from_env({"CLOSED_NETWORKS": "10.0.0.0/8, fd00::/8", "CLOSED_HOSTS": "10.1.2.3,FD00::1"})
    assert settings.closed_networks == ("10.0.0.0/8", "fd00::/8")
    assert settings.closed_hosts == ("10.1.2.3", "fd00::1")


@pytest.mark.parametrize(
    ("written", "size"),
    [("512M", 2**29), ("40G", 40 * 2**30), ("40GiB", 40 * 2**30), ("1t", 2**40), ("2000000", 2000384)],
)
def test_sizes_read_as_people_write_them(written: str, size: int) -> None:
    assert Settings.from_env({"DISK_SIZE": written}).disk_size == size


@pytest.mark.parametrize(
    "system", ["win10", "win2k22", "winxp", "msdos6.22", "freedos1.2", "rhel3", "rhel4.9", "centos4.0"]
)
def test_systems_without_virtio_drivers(system: str) -> None:
    assert not Settings.from_env({"OS_VARIANT": system}).virtio


@pytest.mark.parametrize("system", ["debian12", "rhel7", "rhel8.4", "rhel40", "centos7.0", "ubuntu18.04", "fedora30"])
def test_systems_with_virtio_drivers(system: str) -> None:
    assert Settings.from_env({"OS_VARIANT": system}).virtio


def test_lease() -> None:
    assert Settings.from_env({"LEASE": "stdin"}).lease
