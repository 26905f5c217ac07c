"""Who reaches whom: tested with packets, each refusal next to a connection that succeeds."""

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network

import pytest
from docker.types import IPAMConfig, IPAMPool

from pytest_virtainers import VM, launch
from pytest_virtainers.engine import host
from pytest_virtainers.engine.base import Container
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.plan import Plan, Port
from tests.vm import elsewhere
from tests.vm.calling import container_reaches, reached_by, reaches
from tests.vm.elsewhere import needs_root
from tests.vm.forging import LAST, LISTEN, arp_reply, datagram, frame, received_before_last, send
from tests.vm.hearing import heard, needs_ears
from tests.vm.shapes import OFFLINE
from tests.vm.stranger import PORT, web_server

LAN, LAN_TOO = ({"name": name, "mode": "nat", "ipv6": True} for name in ("lan", "lan-too"))
pytestmark = [
    pytest.mark.each_engine,
    pytest.mark.virtainer(scope="module"),
    pytest.mark.virtainer("a"),
    pytest.mark.virtainer("b"),
    pytest.mark.virtainer("other", network="other", nics=[LAN]),
    pytest.mark.virtainer("its-mate", network="other", nics=[LAN, {"network": LAN_TOO, "ip": "none"}]),
    pytest.mark.virtainer("alone", **OFFLINE),  # its `internet` is off
    pytest.mark.virtainer("mate", **OFFLINE),
    pytest.mark.virtainer("six", network={"name": "six", "ipv6": True}),
    pytest.mark.virtainer("seven", network={"name": "six", "ipv6": True}),
]


def wait_until_out_of_reach(vm: VM, address: str, port: int) -> None:
    """Wait until a VM's container has been informed of a new address of the host."""
    deadline = time.monotonic() + 120
    while reaches(vm, address, port):
        assert time.monotonic() < deadline, f"{vm.name} reaches {address}"


@pytest.fixture(scope="module")
def stranger(engine: DockerEngine, runtime_image: str) -> Iterator[Container]:
    with web_server(engine, runtime_image) as container:
        yield container


@pytest.fixture(scope="module", autouse=True)
def addresses() -> list[str]:
    """Return the host's addresses before the machines are started."""
    return host.addresses()


@pytest.fixture(scope="module")
def service() -> Iterator[int]:
    """Run a service on all addresses of the engine's host; return its port."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


def test_machines_of_one_network_reach_each_other_and_no_other_network(vms: Mapping[str, VM]) -> None:
    a, b, other = vms["a"], vms["b"], vms["other"]
    assert reaches(a, b.ip)
    assert reaches(b, a.ip)
    assert not reaches(a, other.ip)
    assert not reaches(other, a.ip)
    assert reaches(vms["its-mate"], other.ip), "a neighbour reaches it"


def test_containers_of_the_engine_are_out_of_reach(
    vms: Mapping[str, VM], stranger: Container, engine: DockerEngine, runtime_image: str
) -> None:
    address, run = stranger.addresses().address, secrets.token_hex(4)
    plan = Plan(f"neighbour-{run}", "helper", runtime_image, entrypoint=("cat",), port=Port(stranger.name))
    with contextlib.closing(engine.create(plan, run)) as neighbour:
        neighbour.start()
        assert container_reaches(neighbour, address, PORT), "a neighbour reaches it"
    for name in ("a", "other", "alone", "six"):
        assert not reaches(vms[name], address, PORT), name
        if engine.kind == "docker":  # Podman's host forwards it with its own address, like a connection of the test
            assert not container_reaches(stranger, vms[name].ip), name


def test_services_of_the_host_are_out_of_reach(
    vms: Mapping[str, VM], stranger: Container, service: int, addresses: list[str]
) -> None:
    of_v4 = [each for each in addresses if ":" not in each]
    assert any(container_reaches(stranger, each, service) for each in of_v4), "an ordinary container does"
    for name in ("a", "other", "alone", "six"):
        subnet = vms[name].network.subnet
        assert subnet is not None
        assert reached_by(vms[name], {*of_v4, str(subnet[1])}, service) == [], name


@needs_ears
def test_without_internet_nothing_leaves_not_even_dns_queries(vms: Mapping[str, VM]) -> None:
    """A query for an unknown name reaches the host from one machine, but not from the other."""
    for name, leaves in (("a", True), ("alone", False)):
        word = f"leak-{secrets.token_hex(4)}"
        with heard(word.encode()) as on:
            vms[name].run(["getent", "ahosts", f"{word}.example.org"], check=False)
        assert bool(on) == leaves, name
    mine = f"ping-{secrets.token_hex(4)}".encode().hex()[:32]
    for name, leaves in (("a", True), ("alone", False)):
        with heard(bytes.fromhex(mine)) as on:
            vms[name].run(["ping", "-c2", "-W2", "-p", mine, "198.51.100.1"], sudo=True, check=False)
        bridge = {each for each in on if each.startswith(("veth", "br-", "podman", "cni"))}
        assert bool(set(on) - bridge) == leaves, f"{name}: {on}"


def test_without_internet_vms_still_reach_each_other(vms: Mapping[str, VM]) -> None:
    alone, mate = vms["alone"], vms["mate"]
    assert reaches(alone, "mate")
    assert reaches(mate, alone.ip)
    assert not alone.run("getent ahostsv4 example.org", check=False)


def test_ipv6_between_machines(vms: Mapping[str, VM], addresses: list[str]) -> None:
    six, seven = vms["six"], vms["seven"]
    assert six.ip6
    six.wait_until_succeeds("ip -6 addr show dev eth0 scope global | grep fd76:")
    seven.wait_until_succeeds("ip -6 addr show dev eth0 scope global | grep fd76:")
    assert reaches(six, seven.ip6)
    assert reaches(seven, six.ip6)
    assert seven.ip6 in six.run("getent ahostsv6 seven").stdout
    for address in addresses:
        assert not reaches(six, address), address
    assert not vms["a"].ip6


GATEWAY_MAC, GUEST_MAC = "52:54:00:76:69:01", "52:54:00:76:69:02"


def inner_address(vm: VM, family: str = "-4") -> str:
    """Return the address that the guest has on its first card."""
    return vm.run(f"ip {family} -o address show dev eth0 scope global").stdout.split()[3].partition("/")[0]


@pytest.mark.parametrize("version", [4, 6])
def test_the_first_card_sends_only_from_its_own_address(vms: Mapping[str, VM], version: int) -> None:
    """A guest's root may forge addresses: a neighbour's, the host's, any on the internet."""
    vm, mate = (vms[name] for name in (("a", "b") if version == 4 else ("six", "seven")))
    if version == 4:
        own, to = inner_address(vm), mate.ip
        gateway = str(vm.network.subnet[1]) if vm.network.subnet else ""
        forged = [mate.ip, gateway, "198.51.100.7", "192.168.100.77"]
    else:
        vm.wait_until_succeeds("ip -6 addr show dev eth0 scope global | grep fd76:")
        own, to = inner_address(vm, "-6"), mate.ip6
        forged = [mate.ip6, "2001:db8::7", "fd76:6972:7461::77"]
    with mate.popen(["python3", "-c", LISTEN]) as listening:
        heard = listening.lines(timeout=60)
        assert next(heard) == "listening"
        frames = [frame(GATEWAY_MAC, GUEST_MAC, datagram(each, to, f"as {each}")) for each in forged]
        tagged = [frame(GATEWAY_MAC, GUEST_MAC, datagram(each, to, f"tagged as {each}"), tags=2) for each in forged]
        send(vm, "eth0", *frames, *tagged, frame(GATEWAY_MAC, GUEST_MAC, datagram(own, to, "own")))
        send(vm, "eth0", frame(GATEWAY_MAC, GUEST_MAC, datagram(own, to, LAST)))
        assert received_before_last(heard) == ["own"]


def test_a_card_sends_only_from_its_own_addresses_unless_on_a_wire(vms: Mapping[str, VM]) -> None:
    vm, mate = vms["other"], vms["its-mate"]
    card, there = vm.nics["lan"], mate.nics["lan"]
    network = card.network
    assert network is not None
    assert network.subnet is not None
    host_address, free = str(network.subnet[1]), str(network.subnet[9])
    with mate.popen(["python3", "-c", LISTEN]) as listening:
        heard = listening.lines(timeout=60)
        assert next(heard) == "listening"
        forged = [
            *(datagram(each, there.ip, f"as {each}") for each in (host_address, free, there.ip)),
            *(datagram(each, there.ip6, f"as {each}") for each in ("2001:db8::7", there.ip6)),
        ]
        own = [datagram(card.ip, there.ip, "IPv4"), datagram(card.ip6, there.ip6, "IPv6")]
        send(
            vm,
            card.device,
            *(frame(there.mac, card.mac, each, tags=tags) for each in forged for tags in (0, 1, 2)),
            *(frame(there.mac, "02:00:00:00:00:07", each) for each in own),
            frame(there.mac, card.mac, arp_reply(card.mac, free, there.mac, there.ip)),
            *(frame(there.mac, card.mac, each) for each in own),
        )
        send(vm, card.device, frame(there.mac, card.mac, datagram(card.ip, there.ip, LAST)))
        assert received_before_last(heard) == ["IPv4", "IPv6"]
    assert free not in mate.run("ip neigh").stdout


def test_a_card_without_an_address_may_use_any_except_the_hosts(vms: Mapping[str, VM]) -> None:
    """This is how a machine on an ordinary network takes over another one's address."""
    mate, vm = vms["other"], vms["its-mate"]
    card = vm.nics["lan-too"]
    assert card.network is not None
    assert card.network.subnet is not None
    there = mate.nics.add(card.network)
    try:
        with mate.popen(["python3", "-c", LISTEN]) as listening:
            heard = listening.lines(timeout=60)
            assert next(heard) == "listening"
            senders = [str(card.network.subnet[number]) for number in (1, 77)]
            send(vm, card.device, *(frame(there.mac, card.mac, datagram(each, there.ip, each)) for each in senders))
            send(vm, card.device, frame(there.mac, card.mac, datagram(senders[1], there.ip, LAST)))
            assert received_before_last(heard) == senders[1:]
    finally:
        mate.nics.remove(there)


PRIVATE = ["10.99.7.2", "172.30.7.2", "192.168.77.2", "100.64.7.2", "198.18.7.2"]
METADATA = ["169.254.169.254", "192.0.0.192", "100.100.100.200"]
OTHERS = ["203.0.113.200"]
GATEWAYS = ["10.99.7.1"]


@pytest.fixture
def reaching(monkeypatch: pytest.MonkeyPatch) -> Iterator[VM]:
    """Launch a VM in a run that has opened some closed networks."""
    monkeypatch.setenv("VIRTAINER_REACH", "10.99.0.0/16,203.0.113.0/24,169.254.169.254")
    with launch(name="reaching") as vm:
        yield vm


@needs_root
def test_private_networks_and_metadata_services_are_closed_unless_they_are_named(
    vms: Mapping[str, VM], reaching: VM, stranger: Container, service: int
) -> None:
    a = vms["a"]
    with elsewhere.exclusive(), elsewhere.machine([*PRIVATE, *METADATA, *OTHERS], gateways=GATEWAYS):
        for address in (*PRIVATE, *METADATA, *OTHERS):
            assert container_reaches(stranger, address, elsewhere.PORT), f"an ordinary container reaches {address}"
        reached = {address for address in (*PRIVATE, *METADATA, *OTHERS) if reaches(a, address, elsewhere.PORT)}
        assert reached == set(OTHERS)
        assert not reaches(vms["alone"], OTHERS[0], elsewhere.PORT)
        named = {address for address in (*PRIVATE, *METADATA, *OTHERS) if reaches(reaching, address, elsewhere.PORT)}
        assert named == {"10.99.7.2", "169.254.169.254", *OTHERS}
        assert container_reaches(stranger, GATEWAYS[0], service), "the host's own address in a network that is open"
        wait_until_out_of_reach(reaching, GATEWAYS[0], service)


LATER = ["10.99.9.0/24", "203.0.113.128/25"]


@pytest.mark.parametrize("subnet", LATER)
def test_a_host_service_on_a_network_that_appears_later_is_out_of_reach(
    vms: Mapping[str, VM], reaching: VM, engine: DockerEngine, runtime_image: str, subnet: str
) -> None:
    run = secrets.token_hex(4)
    with contextlib.ExitStack() as undo:
        undo.enter_context(elsewhere.exclusive())
        network = f"later-{run}"
        engine.api.create_network(network, ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=subnet)]))
        undo.callback(engine.api.remove_network, network)
        serve = ("sh", "-c", f"python3 -m http.server {PORT} & exec cat")
        plan = Plan(network, "helper", runtime_image, entrypoint=serve, port=Port(network))
        container = undo.enter_context(contextlib.closing(engine.create(plan, run)))
        container.start()  # Podman creates the bridge for it
        gateway = str(IPv4Network(subnet)[1])
        if gateway not in host.addresses():
            pytest.skip("this host is not on the engine's networks")
        service = undo.enter_context(socket.create_server((gateway, 0)))
        port = service.getsockname()[1]
        assert container_reaches(container, gateway, port), "a neighbour reaches it"
        for vm in (vms["a"], reaching):
            wait_until_out_of_reach(vm, gateway, port)
        if engine.kind == "podman":  # Docker itself keeps its networks apart
            assert reaches(reaching, container.addresses().address, PORT)
