"""The architectures of guests, named as Debian and container engines do, and what their machines boot from."""

from __future__ import annotations

from pytest_virtainers.support.runtime import protocol

USUAL = "amd64"
"""That of guests of which nothing is said."""
FIRMWARE = protocol.FIRMWARE


def check_firmware(arch: str, firmware: str) -> None:
    """Raise ValueError when machines of this architecture do not boot from that; empty and `auto` go with all."""
    if arch in FIRMWARE and firmware not in {"", "auto", *FIRMWARE[arch]}:
        raise ValueError(f"{arch} machines boot from {' or '.join(FIRMWARE[arch])}, not from {firmware}")
