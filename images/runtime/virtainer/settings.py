"""The environment variables of the contract, read once and checked before anything is changed."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from virtainer.exit_reasons import End, Reason
from virtainer.protocol import FIRMWARE, IMAGE_DIR, JSON, SHUTDOWN_SECONDS, TEXT, Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")


class CacheMode(NamedTuple):
    """QEMU's handling of writes (qemu-system-x86_64(1), -drive cache=)."""

    write_cache: bool
    direct: bool
    no_flush: bool


CACHE_MODES = {
    "writeback": CacheMode(write_cache=True, direct=False, no_flush=False),
    "none": CacheMode(write_cache=True, direct=True, no_flush=False),
    "writethrough": CacheMode(write_cache=False, direct=False, no_flush=False),
    "directsync": CacheMode(write_cache=False, direct=True, no_flush=False),
    "unsafe": CacheMode(write_cache=True, direct=False, no_flush=True),
}

# Systems, as libosinfo names them, that cannot boot from a virtio disk as they come.
NO_VIRTIO = re.compile(r"(win|msdos|freedos|dos|os2|(rhel|centos)[34](\D|$)|netware|solaris|opensolaris)")

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Settings(NamedTuple):
    """The settings of this virtainer."""

    ram: int  # MiB
    cpus: int
    name: str
    virtio: bool
    disk_size: int  # bytes
    image_dir: Path
    seed_iso: Path
    cidr: str  # the first three octets of the inner /24
    image_url: str
    accel: str
    arch: str
    firmware: str
    lease: bool
    linger: bool  # stay after the VM has ended, for evidence
    cache: str
    shutdown_timeout: float  # seconds
    template: Path | None  # start from the VM that was saved in this folder
    template_save: bool  # into image_dir
    resume: Path | None  # resume from the evidence in this folder
    closed_networks: tuple[str, ...]  # closed to the guest, which is also closed to them
    closed_hosts: tuple[str, ...]  # closed to the guest
    closed_gateway: bool  # the container's gateway is the engine's host
    names_only: bool  # the guest's DNS knows only other containers

    @property
    def keeps_variables(self) -> bool:
        """Whether the firmware's variables are a file next to the overlay."""
        return self.arch == "amd64" and self.firmware == "uefi"

    @property
    def isolated(self) -> bool:
        """Whether anything is closed to the guest."""
        return bool(self.closed_networks or self.closed_hosts)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read every variable; an empty one counts as unset. Raises End with variable, value and allowed values."""

        def read(name: str, default: str, parse: Callable[[str], T], allowed: str) -> T:
            value = env.get(name, "") or default
            try:
                return parse(value)
            except ValueError:
                raise End(Reason.SETTING, f"{name}={value!r}: allowed is {allowed}") from None

        def folder(name: str) -> Path | None:
            return read(name, "", _absolute, "an absolute path") if env.get(name) else None

        # `virtainer.events` reads it before there are settings, so that it can report a bad one.
        read(Variable.EVENTS, TEXT, _one_of(TEXT, JSON), f"{TEXT} or {JSON}")
        arch = read(Variable.ARCH, "amd64", _one_of(*FIRMWARE), " or ".join(FIRMWARE))
        firmwares = FIRMWARE[arch]
        systems = _matching(r"[a-z0-9][a-z0-9._-]*" if arch == "amd64" else rf"(?!{NO_VIRTIO.pattern})[a-z0-9._-]+")
        return cls(
            arch=arch,
            ram=read(Variable.RAM, "1024", _whole(32, 2**24), "a whole number of MiB, from 32"),
            cpus=read(Variable.CPU, "1", _whole(1, 255), "a whole number from 1 to 255"),
            name=read(
                Variable.VM_NAME,
                "vm",
                _matching(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"),
                "a host name without dots",
            ),
            virtio=not NO_VIRTIO.match(
                read(
                    Variable.OS_VARIANT,
                    "linux",
                    systems,
                    "a name as libosinfo writes it: debian12, win10"
                    if arch == "amd64"
                    else f"a system that boots from virtio disks with ARCH={arch}",
                )
            ),
            disk_size=read(Variable.DISK_SIZE, "40G", _size, "a size such as 512M, 40G or 1T, from 1M"),
            image_dir=read(Variable.IMAGE_DIR, IMAGE_DIR, _absolute, "an absolute path"),
            seed_iso=read(Variable.CLOUD_INIT_DISK, "/cloud_init.iso", _absolute, "an absolute path"),
            cidr=read(
                Variable.CIDR, "192.168.100", _three_octets, "the first three octets of a private /24: 192.168.100"
            ),
            image_url=read(
                Variable.IMAGE_URL,
                "",
                _matching(r"(https?://[^/\s]+/\S+)?"),
                "an http:// or https:// address of a disk image",
            ),
            accel=read(Variable.ACCEL, "auto", _one_of("auto", "kvm", "tcg"), "auto, kvm or tcg"),
            firmware=read(
                Variable.FIRMWARE, firmwares[0], _one_of(*firmwares), f"{' or '.join(firmwares)} with ARCH={arch}"
            ),
            lease=read(Variable.LEASE, "off", _one_of("off", "stdin"), "off or stdin") == "stdin",
            linger=read(Variable.LINGER, "off", _one_of("off", "on"), "off or on") == "on",
            cache=read(Variable.DISK_CACHE, "writeback", _one_of(*CACHE_MODES), ", ".join(CACHE_MODES)),
            shutdown_timeout=read(
                Variable.SHUTDOWN_TIMEOUT, str(SHUTDOWN_SECONDS), _whole(0, 86400), "whole seconds, from 0 to 86400"
            ),
            template=folder(Variable.TEMPLATE),
            template_save=read(Variable.TEMPLATE_SAVE, "off", _one_of("off", "on"), "off or on") == "on",
            resume=folder(Variable.RESUME),
            closed_networks=read(
                Variable.CLOSED_NETWORKS,
                "",
                _each(ip_network),
                "networks with commas between them: 10.0.0.0/8,fd00::/8",
            ),
            closed_hosts=read(
                Variable.CLOSED_HOSTS, "", _each(ip_address), "addresses with commas between them: 10.1.2.3,fd00::1"
            ),
            closed_gateway=read(Variable.CLOSED_GATEWAY, "on", _one_of("on", "off"), "on or off") == "on",
            names_only=read(Variable.DNS, "engine", _one_of("engine", "names"), "engine or names") == "names",
        )


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise ValueError
        return int(value)

    return parse


def _matching(pattern: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError
        return value

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    return _matching("|".join(words))


def _each(parse: Callable[[str], object]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of lists; `parse` reads each item, and raises ValueError."""

    def parse_all(value: str) -> tuple[str, ...]:
        if "%" in value:  # an address with an interface is valid only in this container
            raise ValueError
        return tuple(str(parse(each.strip())) for each in value.split(",") if value)

    return parse_all


def _size(value: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", value, re.ASCII | re.IGNORECASE)
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if not 2**20 <= size <= 2**50:
        raise ValueError
    return -(-size // 512) * 512


def _absolute(value: str) -> Path:
    if not value.startswith("/"):
        raise ValueError
    return Path(value)


def _three_octets(value: str) -> str:
    address = IPv4Address(f"{value}.0")  # its error is a ValueError
    if not address.is_private or address.is_loopback or address.is_link_local or address.is_reserved:
        raise ValueError
    return value
