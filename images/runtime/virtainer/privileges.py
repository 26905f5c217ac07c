"""The rights that the container needs; messages name a missing one with the flag that grants it."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from virtainer.exit_reasons import End, Reason

# Numbers from linux/capability.h. NET_ADMIN: tap and NAT; the next two: dnsmasq; the last two: to become other users.
CAPABILITIES = {"NET_ADMIN": 12, "NET_BIND_SERVICE": 10, "NET_RAW": 13, "SETUID": 7, "SETGID": 6}

_TUN = Path("/dev/net/tun")
_KVM = Path("/dev/kvm")
_HOSTS = {"amd64": "x86_64", "arm64": "aarch64"}  # as uname names them
_KVM_CREATE_VM = 0xAE01  # linux/kvm.h


def require() -> None:
    """Raise End unless this container has every capability and device that any VM needs."""
    complaints = missing_capabilities(Path("/proc/self/status").read_text())
    if not _TUN.exists():
        complaints.append("--device /dev/net/tun")
    elif not os.access(_TUN, os.R_OK | os.W_OK):
        complaints.append("--device /dev/net/tun (it is there, and may not be opened)")
    if complaints:
        raise End(Reason.PRIVILEGE, f"this container may not do enough: add to docker run: {' '.join(complaints)}")


def missing_capabilities(status: str) -> list[str]:
    """Return the docker flags for the capabilities that /proc/self/status does not show."""
    effective = int(re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return [f"--cap-add {name}" for name, bit in CAPABILITIES.items() if not effective >> bit & 1]


def open_kvm(accel: str, arch: str) -> int | None:
    """Return a descriptor of /dev/kvm for a guest of this architecture, or None for emulation.

    `auto` uses KVM only where it can be trusted to run a kernel. Raises End if `kvm` was requested and is not usable.
    """
    if accel == "tcg":
        return None
    complaint, kvm = _probe_kvm(os.uname().machine, arch)
    if complaint and accel == "kvm":
        raise End(Reason.PRIVILEGE, f"ACCEL=kvm is impossible here: {complaint}; ACCEL=auto would emulate instead")
    return kvm


def _probe_kvm(host: str, arch: str) -> tuple[str | None, int | None]:
    if host != _HOSTS[arch]:
        return f"the guest is for {arch}, and this host is {host}", None
    if arch == "amd64" and not has_virtualization(Path("/proc/cpuinfo").read_text()):
        # Seen: a /dev/kvm that creates VMs on such a CPU, in which an ordinary kernel hangs.
        return "the CPU flags show neither vmx nor svm (on a cloud host: enable nested virtualization)", None
    if not _KVM.exists():
        return "there is no /dev/kvm: docker run --device /dev/kvm …", None
    try:
        kvm = os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
        os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
    except OSError as error:
        return f"/dev/kvm creates no VM: {error.strerror}", None
    return None, kvm


def has_virtualization(cpuinfo: str) -> bool:
    """Return whether /proc/cpuinfo shows the flags of Intel's or AMD's virtualization."""
    return re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpuinfo, re.MULTILINE) is not None
