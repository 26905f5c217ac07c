"""Whether the guest can have IPv6, and the container's own IPv6."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from virtainer import ipv6

if TYPE_CHECKING:
    from pathlib import Path

# As in a container with fd00:6::2/64 and 10.240.6.2/24 on eth0, and the VM's inner network.
ADDRESSES = """\
00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000420afffef00602 1b 40 20 80     eth0
fd000006000000000000000000000002 1b 40 00 82     eth0
fd766972746100000000000000000001 02 40 00 82 virtainer0
"""
NONE, ANY = "0" * 32, "00000000000000000000000000000000 00"
ROUTES = f"""\
fd000006000000000000000000000000 40 {ANY} {NONE} 00000100 00000001 00000000 00000001     eth0
{NONE} 00 {ANY} fd0000060000000000000000000000fe 00000400 00000001 00000000 00000003     eth0
{NONE} 00 {ANY} {NONE} ffffffff 00000001 00000000 00200200       lo
"""


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ipv6, "_PROC_NET", tmp_path)
    monkeypatch.setattr(ipv6, "_CONF", tmp_path)
    (tmp_path / "if_inet6").write_text(ADDRESSES)
    (tmp_path / "ipv6_route").write_text(ROUTES)
    for name, value in {"all/forwarding": "1", "default/disable_ipv6": "0"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f"{value}\n")
    return tmp_path


def test_ipv6_needs_an_address_of_the_uplink_and_forwarding() -> None:
    assert ipv6.usable("eth0")
    assert not ipv6.usable("eth1")


def test_missing_forwarding_is_reported_with_the_option(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ipv6, "note", said.append)
    for name in ("all/forwarding", "default/disable_ipv6"):
        (kernel / name).unlink()
        (kernel / name).mkdir()  # switches that cannot be read or written
    assert not ipv6.usable("eth0")
    assert said == [
        "no IPv6 for the guest, though the container has it: docker run --sysctl net.ipv6.conf.all.forwarding=1 "
        "--sysctl net.ipv6.conf.default.disable_ipv6=0 …"
    ]


def test_a_privileged_container_sets_its_own_options(kernel: Path) -> None:
    (kernel / "all/forwarding").write_text("0\n")
    assert ipv6.usable("eth0")
    assert (kernel / "all/forwarding").read_text() == "1"


def test_its_networks_and_the_engines_host_on_them() -> None:
    assert ipv6.connected() == {"fd00:6::/64"}
    assert ipv6.neighbours() == {"fd00:6::1", "fd00:6::fe"}


def test_a_kernel_without_ipv6(kernel: Path) -> None:
    (kernel / "if_inet6").unlink()
    (kernel / "ipv6_route").unlink()
    assert not ipv6.usable("eth0")
    assert ipv6.connected() == ipv6.neighbours() == set()


def test_the_default_route_can_be_restored(kernel: Path) -> None:
    assert ipv6.way_out() == "route replace ::/0 via fd00:6::fe dev eth0\n"
    (kernel / "ipv6_route").unlink()
    assert ipv6.way_out() == ""
