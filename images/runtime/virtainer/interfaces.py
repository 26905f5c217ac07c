"""The container's interfaces, found by their MAC, as engines choose their names."""

from __future__ import annotations

import re
from pathlib import Path

MAC = r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"

_SYS_NET = Path("/sys/class/net")


class Missing(Exception):
    """There is no such interface; the text lists the existing ones."""


def find(mac: str) -> str:
    """Return the name of the interface with this MAC; raises Missing.

    Taps do not count: a guest's card may have any MAC.
    """
    macs = {link.name: _read(link / "address") for link in sorted(_SYS_NET.iterdir()) if is_uplink(link)}
    for name, each in macs.items():
        if each == mac:
            return name
    there = ", ".join(f"{name} {each}" for name, each in macs.items()) or "none"
    raise Missing(
        f"this container has no interface with the MAC {mac} (there are: {there}): connect the network first"
    )


def is_uplink(link: Path) -> bool:
    """Return whether the engine made this interface: it is neither one of the supervisor's taps nor the loopback."""
    return link.name != "lo" and not (link / "tun_flags").exists()


def mtu(name: str) -> int:
    """Return an interface's MTU."""
    return int(_read(_SYS_NET / name / "mtu"))


def exists(name: str) -> bool:
    """Return whether there is an interface of this name."""
    return (_SYS_NET / name).exists()


def is_mac(word: str) -> bool:
    """Return whether a word is a MAC in lower case, with colons."""
    return re.fullmatch(MAC, word) is not None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # it was removed since it was listed
        return ""
