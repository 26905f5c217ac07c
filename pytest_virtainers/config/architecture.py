"""The architectures of guests, named as Debian and container engines name them, and their firmware."""

from __future__ import annotations

from pytest_virtainers.support.runtime_modules import protocol

USUAL = "amd64"
"""The architecture of guests for which none is given."""
FIRMWARE = protocol.FIRMWARE


def check_firmware(arch: str, firmware: str) -> None:
    """Raise `ValueError` if an architecture does not have this firmware; all have empty and `auto`."""
    if arch in FIRMWARE and firmware not in {"", "auto", *FIRMWARE[arch]}:
        raise ValueError(f"{arch} machines boot from {' or '.join(FIRMWARE[arch])}, not from {firmware}")
