"""The host's networks and addresses, from the tables of Linux."""

import os
import subprocess
import sys
import threading
import time
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from pytest_virtainers.engine import host

TABLES = {
    "route": """\
Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 0100A8C0 0003 0 0 0 00000000 0 0 0
eth0 0000A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0
docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0
""",
    "fib_trie": """\
Main:
  +-- 0.0.0.0/0 3 0 4
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 192.168.0.7
        /32 host LOCAL
     |-- 192.168.0.255
        /32 link BROADCAST
Local:
     |-- 192.168.0.7
        /32 host LOCAL
     |-- 172.17.0.1
        /32 host LOCAL
""",
    "if_inet6": """\
00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000fc00fffe000001 02 40 20 80     eth0
fd000000000000000000000000000002 02 40 00 82     eth0
""",
}


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, table in TABLES.items():
        (tmp_path / name).write_text(table)
    monkeypatch.setattr(host, "Path", lambda _folder, name: tmp_path / name)
    return tmp_path


def test_networks_exclude_the_default_route(proc: Path) -> None:
    assert host.networks() == [IPv4Network("192.168.0.0/24"), IPv4Network("172.17.0.0/16")]


def test_addresses_exclude_loopback_and_link_local(proc: Path) -> None:
    assert host.addresses() == ["172.17.0.1", "192.168.0.7", "fd00::2"]


def test_missing_tables_mean_no_networks_and_addresses(proc: Path) -> None:
    for name in TABLES:
        (proc / name).unlink()
    assert host.networks() == host.addresses() == []


def test_is_member_of_compares_the_own_address_with_the_network() -> None:
    assert host.is_member_of(IPv4Interface("127.1.2.3/8"))
    # Linux sends there from 127.0.0.1, which is in the larger network and not in the smaller one.
    assert not host.is_member_of(IPv4Interface("127.1.2.3/24"))
    assert not host.is_member_of(IPv4Interface("203.0.113.7/24"))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root gives this host an address")
def test_new_addresses_are_noticed_until_close() -> None:
    noticed, pid = threading.Event(), os.getpid()  # these tests may run in several environments at one time
    watch = host.AddressWatch(noticed.set)
    try:
        for version, address in (
            ("-4", f"127.77.{pid >> 8 & 255}.{pid & 255}/32"),
            ("-6", f"fd77::{pid & 0xFFFF:x}/128"),
        ):
            noticed.clear()
            subprocess.run(["ip", version, "address", "add", address, "dev", "lo"], check=True)
            subprocess.run(["ip", version, "address", "delete", address, "dev", "lo"], check=True)
            assert noticed.wait(60), address
    finally:
        watch.close()
    wait_until_over("addresses")


def wait_until_over(thread: str) -> None:
    deadline = time.monotonic() + 60
    while any(each.name == thread for each in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
