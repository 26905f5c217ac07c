"""Several machines: names, wires between them, faults, and captures."""

import json
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_virtainers import VM, Network, VirtainerError
from tests.vm import forging
from tests.vm.hearing import heard, needs_ears

# Docker would set the default route to the network with the first name.
WIRES = pytest.mark.virtainer(scope="module", nics=["a-wire", "wire"])
pytestmark = [
    pytest.mark.virtainer("a", ip=11),
    pytest.mark.virtainer("b"),
    WIRES,
    pytest.mark.each_engine,
]
_PING = "ping -c{count} -i0.2 -W2 -q {to} | sed -n 's/.* \\([0-9]*\\) received.*/\\1/p'"
# `ping` waits for the last answer only twice as long as the longest one took, which is too short for busy guests.
_PING_EACH = "for each in 1 2 3; do ping -c1 -W20 -q {to} >/dev/null && echo answered; done; true"


def pings(vm: VM, to: str, count: int = 3) -> int:
    """Return how many of some pings are answered at once."""
    return int(vm.run(_PING.format(count=count, to=to), sudo=True).stdout or 0)


def patient_pings(vm: VM, to: str) -> int:
    """Return how many of three pings, one after another, are answered, however slowly."""
    return vm.run(_PING_EACH.format(to=to), sudo=True).stdout.count("answered")


def wire(vms: Mapping[str, VM], name: str) -> Network:
    found = vms["a"].nics[name].network
    assert found is not None
    return found


def test_each_finds_the_others_by_name(vms: Mapping[str, VM]) -> None:
    a, b = vms["a"], vms["b"]
    assert a.network.subnet is not None
    assert a.ip == str(a.network.subnet[11])
    for vm, other in ((a, b), (b, a)):
        assert vm.run(["getent", "ahostsv4", other.name]).stdout.split()[0] == other.ip
        assert patient_pings(vm, other.name) == 3
        assert other.name not in vm.run("cat /etc/hosts | cut -f2- -d' '").stdout.split()


def test_a_wire_carries_frames_of_any_protocol(vms: Mapping[str, VM]) -> None:
    a, b = vms["a"], vms["b"]
    for name in ("a-wire", "wire"):
        here, there = a.nics[name], b.nics[name]
        assert patient_pings(a, there.ip) == 3
        neighbour = a.run(["ip", "neigh", "show", there.ip]).stdout
        assert f"dev {here.device} lladdr {there.mac}" in neighbour, "the card of the guest itself is on the wire"
        link_local = b.run(f"ip -6 -o addr show dev {there.device} scope link").stdout.split()[3].partition("/")[0]
        assert patient_pings(a, f"{link_local}%{here.device}") == 3
        network = here.network
        assert network is not None
        assert network.subnet is not None
        assert pings(a, str(network.subnet[1])) == 0, "the engine's host, which is on the wire, too"
        a.wait_until_succeeds(f"ping -6 -c2 -W1 ff02::1%{here.device} | grep {link_local}", sudo=True)  # multicast
    assert a.run(["getent", "ahostsv4", "b.a-wire"]).stdout.split()[0] == b.nics["a-wire"].ip


@needs_ears
def test_nothing_leaves_a_wire(vms: Mapping[str, VM]) -> None:
    """Not even through the engine's host, although the guest gets its address and MAC on the wire."""
    a, b = vms["a"], vms["b"]
    network, device = wire(vms, "wire"), a.nics["wire"].device
    assert network.subnet is not None
    host = str(network.subnet[1])
    shown = json.loads(subprocess.run(["ip", "-json", "addr"], capture_output=True, check=True).stdout)
    mac = next(link["address"] for link in shown if host in (each.get("local") for each in link["addr_info"]))
    a.run(f"ip route replace 198.51.100.1 via {host} dev {device}", sudo=True)
    a.run(["ip", "neigh", "replace", host, "lladdr", mac, "dev", device], sudo=True)
    for to, leaves in ((b.nics["wire"].ip, True), (host, False), ("198.51.100.1", False)):
        word = secrets.token_bytes(16)
        # Podman's bridges change their MAC when another machine joins: the host may get, and drop, hidden frames.
        with heard(word, hidden=leaves) as on:
            a.run(["ping", "-c2", "-W1", "-p", word.hex(), to], sudo=True, check=False)
        assert bool(on) == leaves, to
    a.run("ip route del 198.51.100.1", sudo=True)


@needs_ears  # requires root, as does the firewall
@pytest.mark.skipif(shutil.which("iptables") is None, reason="this host has no iptables")
def test_firewalls_of_the_host_do_not_affect_a_wire(vms: Mapping[str, VM]) -> None:
    a, b = vms["a"], vms["b"]
    subnet = str(wire(vms, "wire").subnet)
    rule = ["FORWARD", "-s", subnet, "-j", "DROP"]
    subprocess.run(["iptables", "-I", *rule], check=True)
    try:
        assert patient_pings(a, b.nics["wire"].ip) == patient_pings(b, a.nics["wire"].ip) == 3
    finally:
        subprocess.run(["iptables", "-D", *rule], check=True)


def test_the_default_route_stays_on_the_first_card(vms: Mapping[str, VM]) -> None:
    for vm in vms.values():
        assert [line.split()[4] for line in vm.run("ip route show default").stdout.splitlines()] == ["eth0"]
        code, said = vm.machine.container.run(["ip", "route", "show", "default"])
        assert (code, len(said.splitlines())) == (0, 1)
        assert vm.network.subnet is not None
        assert f"via {vm.network.subnet[1]} ".encode() in said


@pytest.mark.parametrize("on", ["nat", "a-wire"])
def test_partition_and_loss_end_with_their_block(vms: Mapping[str, VM], on: str) -> None:
    a, b = vms["a"], vms["b"]
    network = a.network if on == "nat" else wire(vms, on)
    to_b, to_a = (b.ip, a.ip) if on == "nat" else (b.nics[on].ip, a.nics[on].ip)
    assert patient_pings(a, to_b) == 3
    with network.partition(a, b):
        assert pings(a, to_b) == pings(b, to_a) == 0
        assert a.run("echo still here").ok
        network.heal()
        assert patient_pings(a, to_b) == 3
    with network.lose(a, b, share=0.5):
        assert 1 < pings(a, to_b, count=20) < 19
    assert patient_pings(a, to_b) == 3


_LISTEN = """
import socket
with socket.socket(type=socket.SOCK_DGRAM) as here:
    here.bind(("", 9000))
    print("listening", flush=True)
    while True:
        print(here.recv(100).decode(), flush=True)
"""
_SEND = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 9000))"


def test_machines_on_a_wire_may_use_any_address(vms: Mapping[str, VM]) -> None:
    """Even its host's address: the host does not receive these frames."""
    a, b = vms["a"], vms["b"]
    here, there = a.nics["wire"], b.nics["wire"]
    assert here.network is not None
    assert here.network.subnet is not None
    senders = ["198.51.100.7", str(here.network.subnet[1])]
    b.run(f"sysctl net.ipv4.conf.{there.device}.rp_filter=0 net.ipv4.conf.all.rp_filter=0", sudo=True)
    with b.popen(["python3", "-c", forging.LISTEN]) as listening:
        heard_by_b = listening.lines(timeout=60)
        assert next(heard_by_b) == "listening"
        datagrams = [forging.datagram(each, there.ip, each) for each in senders]
        forging.send(a, here.device, *(forging.frame(there.mac, here.mac, each) for each in datagrams))
        forging.send(
            a, here.device, forging.frame(there.mac, here.mac, forging.datagram(senders[0], there.ip, forging.LAST))
        )
        assert forging.received_before_last(heard_by_b) == sorted(senders)


def test_one_way_loss_loses_one_way(vms: Mapping[str, VM]) -> None:
    a, b = vms["a"], vms["b"]
    assert patient_pings(b, a.nics["a-wire"].ip) == 3  # in the block, no answer would inform b of the MAC of a
    with a.popen(["python3", "-c", _LISTEN]) as at_a, b.popen(["python3", "-c", _LISTEN]) as at_b:
        heard_by_a, heard_by_b = at_a.lines(timeout=60), at_b.lines(timeout=60)
        assert next(heard_by_a) == next(heard_by_b) == "listening"
        with wire(vms, "a-wire").lose(a, b):
            a.run(["python3", "-c", _SEND, b.nics["a-wire"].ip, "lost"])
            b.run(["python3", "-c", _SEND, a.nics["a-wire"].ip, "found"])
            assert next(heard_by_a) == "found"
        a.run(["python3", "-c", _SEND, b.nics["a-wire"].ip, "after"])
        assert next(heard_by_b) == "after"


def test_slow_limits_the_rate_of_a_sender(vms: Mapping[str, VM]) -> None:
    a, b = vms["a"], vms["b"]
    address = b.nics["a-wire"].ip
    fetch = (
        "import time, urllib.request as u; began = time.monotonic(); "
        f"print(len(u.urlopen('http://{address}:8000/data').read()), time.monotonic() - began)"
    )
    b.run("mkdir -p /tmp/www && head -c 250000 /dev/zero >/tmp/www/data")
    with b.popen("exec python3 -m http.server 8000 --directory /tmp/www"):
        b.wait_for_port(8000)
        with wire(vms, "a-wire").slow(b, rate="250kbit"):
            slow_size, slow_s = a.run(["python3", "-c", fetch]).stdout.split()
        assert float(slow_s) > 6  # 250 kB at 31 kB/s take 8 s
        fast_s: list[float] = []  # a busy host may slow any of them down
        while not fast_s or (min(fast_s) > float(slow_s) / 2 and len(fast_s) < 20):
            size, seconds = a.run(["python3", "-c", fetch]).stdout.split()
            fast_s.append(float(seconds))
            assert size == slow_size == "250000"
        assert min(fast_s) < float(slow_s) / 2


def test_a_delay_needs_a_kernel_module(vms: Mapping[str, VM]) -> None:
    a, b = vms["a"], vms["b"]
    slow = wire(vms, "a-wire").slow(b, delay=0.2)
    if b.machine.container.run(["tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "1us"])[0] == 0:
        with slow:
            answer = a.run(["ping", "-c1", b.nics["a-wire"].ip], sudo=True).stdout
        assert float(answer.partition("time=")[2].split()[0]) >= 200
    else:
        message = (
            "b on the network a-wire: wire: the host's kernel has no sch_netem, which a delay needs: load it on the"
        )
        with pytest.raises(VirtainerError, match=message), slow:
            raise AssertionError


def test_captures_have_each_frame_once(vms: Mapping[str, VM], tmp_path: Path) -> None:
    a, b = vms["a"], vms["b"]
    with wire(vms, "a-wire").capture(tmp_path / "a-wire.pcap"), a.network.capture(tmp_path / "nat.pcap"):
        assert patient_pings(a, b.nics["a-wire"].ip) == 3
        assert patient_pings(b, a.ip) == 3
    for name, asks, answers in (("a-wire", a.nics["a-wire"].ip, b.nics["a-wire"].ip), ("nat", b.ip, a.ip)):
        a.machine.container.put("/tmp", {f"{name}.pcap": (tmp_path / f"{name}.pcap").read_bytes()})
        _, read = a.machine.container.run(["tcpdump", "-n", "-r", f"/tmp/{name}.pcap", "icmp"])
        lines = [line for line in read.decode().splitlines() if "ICMP" in line]
        requests = [f"IP {asks} > {answers}: ICMP echo request" in line for line in lines]
        assert requests == [True, False] * 3, "each frame once, in their order"


@pytest.mark.thorough  # test_power.py has one that is switched on again
def test_added_cards_return_after_a_reboot(vms: Mapping[str, VM]) -> None:
    a, b = vms["a"], vms["b"]
    before = a.nics["a-wire"].ip
    a.reboot()
    assert a.nics["a-wire"].ip == before
    assert patient_pings(b, before) == 3
