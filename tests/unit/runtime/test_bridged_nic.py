"""Cards that take over an interface: the commands to QEMU and the kernel."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from virtainer import bridged_nic, devices, interfaces, isolation, network, qmp
from virtainer.tools import ToolError

from tests.unit.runtime.fake_qemu import FakeQemu, listed

if TYPE_CHECKING:
    from pathlib import Path

MAC = "02:42:0a:01:02:03"
HOST = "02:42:00:00:00:01"
TAKEN = bridged_nic.Taken(MAC, "eth1", ("10.1.2.3/24", "fd00::3/64"), 1450, (HOST,))
ARP = f"""\
IP address       HW type     Flags       HW address            Mask     Device
10.1.2.1         0x1         0x2         {HOST}     *        eth1
10.1.2.9         0x1         0x2         02:42:00:00:00:09     *        eth1
"""
DESCRIBED = [
    {
        "ifname": "eth1",
        "addr_info": [
            {"family": "inet", "local": "10.1.2.3", "prefixlen": 24, "scope": "global"},
            {"family": "inet6", "local": "fd00::3", "prefixlen": 64, "scope": "global"},
            {"family": "inet6", "local": "fe80::3", "prefixlen": 64, "scope": "link"},
        ],
    }
]


class Kernel:
    """Records the programs that are run, with their input; one may fail."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.given: dict[str, str] = {}
        self.inputs: list[str] = []
        self.fails = ""
        self.described: object = DESCRIBED

    def run(self, *argv: str, stdin: str = "") -> str:
        self.ran.append(" ".join(argv))
        self.given[argv[0]] = stdin
        self.inputs.append(stdin)
        if self.ran[-1] == self.fails:
            raise ToolError(f"{argv[0]} failed (1): no", 1)
        return json.dumps(self.described) if "-json" in argv else ""


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(qmp, "SOCKET", tmp_path / "qmp.sock")
    monkeypatch.setattr(devices, "_FILES", tmp_path)
    monkeypatch.setattr(devices, "DEVICES_ADDED", tmp_path / "devices-added")
    monkeypatch.setattr(devices, "make_tap", lambda name: os.open("/dev/null", os.O_RDWR))
    monkeypatch.setattr(interfaces, "_SYS_NET", tmp_path)
    monkeypatch.setattr(bridged_nic, "run", kernel.run)
    monkeypatch.setattr(bridged_nic, "_RECORDS", tmp_path)
    monkeypatch.setattr(isolation, "_RECORD", tmp_path / "closed.json")
    monkeypatch.setattr(isolation, "_LOCK", tmp_path / "closed.lock")
    monkeypatch.setattr(bridged_nic, "_ARP", tmp_path / "arp")
    monkeypatch.setattr(network, "WAY_OUT", tmp_path / "way_out")
    network.WAY_OUT.write_text("route replace default via 172.17.0.1 dev eth0\n")
    monkeypatch.setattr(bridged_nic, "_knock", lambda address: None)
    (tmp_path / "arp").write_text(ARP)
    (tmp_path / "eth1").mkdir()
    (tmp_path / "eth1" / "address").write_text(f"{MAC}\n")
    (tmp_path / "eth1" / "mtu").write_text("1450\n")
    return kernel


def make_card(folder: Path) -> None:
    (folder / bridged_nic.tap_name(MAC)).mkdir()


def test_a_card_joins_with_a_tap_that_is_passed_on(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    qemu = FakeQemu(qom_list=[listed("plug0")])
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["join", "nic1", MAC]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "mac": MAC,
        "addresses": ["10.1.2.3/24", "fd00::3/64"],
        "mtu": 1450,
    }
    assert qemu.commands == ["getfd", "netdev_add", "qom-list", "device_add"]
    assert qemu.arguments("netdev_add") == [{"type": "tap", "id": "nic1-net", "fd": "nic1-tap"}]
    assert qemu.arguments("device_add")[0]["mac"] == MAC
    assert qemu.arguments("device_add")[0]["host_mtu"] == 1450
    assert kernel.ran[1:] == ["nft -f -", "ip -batch -", "ip -4 route flush dev eth1"]


def test_frames_pass_both_ways_and_the_kernel_sends_none() -> None:
    rules = bridged_nic.rules(TAKEN)
    assert 'device "eth1" priority 0; policy accept;\n        fwd to "vt02420a010203"' in rules
    assert 'device "vt02420a010203" priority 0; policy accept;\n        ether saddr' in rules
    assert rules.index('device "vt02420a010203"') < rules.index('fwd to "eth1"')
    assert 'oifname { "eth1", "vt02420a010203" } drop' in rules


def test_a_hidden_card_replaces_the_ethertypes_of_ip() -> None:
    rules = bridged_nic.rules(TAKEN, hidden=True)
    to_guest, _, from_guest = rules.partition("chain from_guest")
    assert (
        """\
        @ll,96,16 { 0x0800, 0x86dd } drop
        @ll,96,16 0x88b5 @ll,96,16 set 0x0800
        @ll,96,16 0x88b6 @ll,96,16 set 0x86dd
        fwd to "vt02420a010203"
"""
        in to_guest
    )
    assert (
        """\
        @ll,96,16 0x0800 @ll,96,16 set 0x88b5
        @ll,96,16 0x86dd @ll,96,16 set 0x88b6
        fwd to "eth1"
"""
        in from_guest
    )
    assert "@ll" not in bridged_nic.rules(TAKEN)


def test_the_interface_loses_its_addresses_and_is_promiscuous() -> None:
    commands = bridged_nic.link_commands(TAKEN, ipv6=True).splitlines()
    assert commands == [
        "link set dev eth1 addrgenmode none",
        "link set dev vt02420a010203 addrgenmode none",
        "address flush dev eth1",
        "link set dev eth1 promisc on up",
        "link set dev vt02420a010203 mtu 1450 up",
    ]
    assert "addrgenmode" not in bridged_nic.link_commands(TAKEN, ipv6=False)


@pytest.mark.parametrize("uplink", ["eth0", ""])
def test_the_default_route_stays_while_its_network_does(tmp_path: Path, kernel: Kernel, uplink: str) -> None:
    if uplink:
        (tmp_path / uplink).mkdir()
    bridged_nic.connect(TAKEN)
    assert any("route replace default via 172.17.0.1 dev eth0\n" in each for each in kernel.inputs) == bool(uplink)
    assert "flush dev eth1" in kernel.ran[-1]


def test_without_the_interface_nothing_is_changed(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    qemu = FakeQemu()
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["join", "nic1", "02:42:00:00:00:99"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("device: this container has no interface with the MAC 02:42:00:00:00:99 (there are: ")
    assert (said.out, kernel.ran, qemu.commands) == ("", [], [])


def test_a_card_joins_once(tmp_path: Path, kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    make_card(tmp_path)
    with FakeQemu().listening(qmp.SOCKET):
        assert devices.main(["join", "nic1", MAC]) == 1
    assert capsys.readouterr().err == f"device: the interface with the MAC {MAC} has been joined already\n"
    assert kernel.ran == []


def test_a_card_that_qemu_refuses_restores_the_addresses(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    qemu = FakeQemu(qom_list=[listed()], device_add=["no such bus"])
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["join", "nic1", MAC]) == 1
    assert capsys.readouterr() == ("", "device: device_add: no such bus\n")
    assert qemu.commands[-1] == "netdev_del"
    assert kernel.ran[-3:] == [
        "nft -f -",
        "ip address replace 10.1.2.3/24 dev eth1",
        "ip address replace fd00::3/64 dev eth1",
    ]
    assert "chain" not in kernel.given["nft"]


def test_rules_that_the_kernel_refuses_leave_no_card(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    kernel.fails = "ip -batch -"
    qemu = FakeQemu()
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["join", "nic1", MAC]) == 1
    assert capsys.readouterr().err == "device: ip failed (1): no\n"
    assert qemu.commands == ["getfd", "netdev_add", "netdev_del"]


def test_a_tap_that_qemu_refuses_is_closed_at_once(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    qemu = FakeQemu(netdev_add=["Duplicate ID"])
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["join", "nic1", MAC]) == 1
    assert qemu.commands == ["getfd", "netdev_add", "closefd"]
    assert len(kernel.ran) == 1, "it only read the configuration"


def test_removal_deletes_the_rules_and_keeps_the_interface(tmp_path: Path, kernel: Kernel) -> None:
    make_card(tmp_path)
    qemu = FakeQemu(qom_get=[(MAC,)], qom_list=[listed()])
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["remove", "nic1"]) == 0
    assert qemu.commands == ["qom-get", "device_del", "qom-list", "netdev_del"]
    assert qemu.arguments("qom-get") == [{"path": "/machine/peripheral/nic1", "property": "mac"}]
    assert kernel.ran == ["nft -f -"]
    assert "delete table netdev virtainer-02420a010203" in kernel.given["nft"]


def test_a_second_card_gets_the_addresses_that_the_first_one_removed(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bridged_nic.look(MAC, 9000, for_host=True) == TAKEN
    kernel.described = []
    assert bridged_nic.look(MAC, 9000, for_host=True) == TAKEN
    monkeypatch.setenv("CLOSED_HOSTS", "203.0.113.7")
    with FakeQemu(qom_list=[listed()]).listening(qmp.SOCKET):
        assert devices.main(["join", "nic1", MAC]) == 0
    assert "10.1.2.1/32" in kernel.given["nft"], "the engine's host is there, too"
    assert HOST in kernel.given["nft"]


def test_the_wait_for_a_silent_host_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridged_nic, "_ASK_SECONDS", 0.01)
    (tmp_path / "arp").write_text(ARP.replace("0x2", "0x0"))
    assert bridged_nic.look(MAC, 9000, for_host=True) == TAKEN._replace(host=())


def test_the_host_of_an_open_network_is_not_resolved() -> None:
    assert bridged_nic.look(MAC, 9000, for_host=False) == TAKEN._replace(host=())
