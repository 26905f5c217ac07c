"""Who reaches whom: shown with packets, each time beside somebody who does reach it."""

import contextlib
import secrets
import socket
from collections.abc import Iterator, Mapping

import pytest

from pytest_virtainers import VM
from pytest_virtainers.engine import host
from pytest_virtainers.engine.client import Engine
from pytest_virtainers.engine.container import Container, Plan, Port
from tests.vm.hearing import heard, needs_ears
from tests.vm.stranger import PORT, web_server

pytestmark = [
    pytest.mark.virtainer(scope="module"),
    pytest.mark.virtainer("a"),
    pytest.mark.virtainer("b"),
    pytest.mark.virtainer("other", network="other"),
    pytest.mark.virtainer("its-mate", network="other"),
    pytest.mark.virtainer("alone", internet="off"),
    pytest.mark.virtainer("mate", internet="off"),
    pytest.mark.virtainer("six", network={"name": "six", "ipv6": True}),
    pytest.mark.virtainer("seven", network={"name": "six", "ipv6": True}),
]
_CALL = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), {}).close()"
_SSH = 22


def reaches(vm: VM, address: str, port: int = _SSH) -> bool:
    return vm.run(["python3", "-c", _CALL.format(30), address, str(port)], check=False).ok


def container_reaches(container: Container, address: str, port: int = _SSH) -> bool:
    return container.run(["python3", "-c", _CALL.format(3), address, str(port)])[0] == 0


@pytest.fixture(scope="module")
def stranger(engine: Engine, runtime_image: str) -> Iterator[Container]:
    with web_server(engine, runtime_image) as container:
        yield container


@pytest.fixture(scope="module", autouse=True)
def addresses() -> list[str]:
    """The host's addresses before the machines are started: those that come later, they do not know of."""
    return host.addresses()


@pytest.fixture(scope="module")
def service() -> Iterator[int]:
    """A service of the engine's host, on all its addresses; gives the port."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


def test_machines_of_one_network_reach_each_other_and_no_other_network(vms: Mapping[str, VM]) -> None:
    a, b, other = vms["a"], vms["b"], vms["other"]
    assert reaches(a, b.ip)
    assert reaches(b, a.ip)
    assert not reaches(a, other.ip)
    assert not reaches(other, a.ip)
    assert reaches(vms["its-mate"], other.ip), "there is somebody who does"


def test_containers_of_the_engine_are_out_of_reach(
    vms: Mapping[str, VM], stranger: Container, engine: Engine, runtime_image: str
) -> None:
    address, run = stranger.joint().address, secrets.token_hex(4)
    plan = Plan(f"neighbour-{run}", "helper", runtime_image, entrypoint=("cat",), port=Port(stranger.name))
    with contextlib.closing(Container(engine, plan, run)) as neighbour:
        neighbour.start()
        assert container_reaches(neighbour, address, PORT), "there is somebody who does"
    for name in ("a", "other", "alone", "six"):
        assert not reaches(vms[name], address, PORT), name
        if engine.kind == "docker":  # Podman's host passes it on with its own address, as a call of the test's
            assert not container_reaches(stranger, vms[name].ip), name


def test_services_of_the_host_are_out_of_reach(
    vms: Mapping[str, VM], stranger: Container, service: int, addresses: list[str]
) -> None:
    of_v4 = [each for each in addresses if ":" not in each]
    assert any(container_reaches(stranger, each, service) for each in of_v4), "an ordinary container does"
    for name in ("a", "other", "alone", "six"):
        subnet = vms[name].network.subnet
        assert subnet is not None
        for address in {*of_v4, str(subnet[1])}:
            assert not reaches(vms[name], address, service), f"{name} to {address}"


@needs_ears
def test_without_internet_nothing_leaves_not_even_a_question(vms: Mapping[str, VM]) -> None:
    """The question for a name that nobody has gets as far as the host for one machine, and nowhere for the other."""
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


def test_without_internet_they_have_each_other(vms: Mapping[str, VM]) -> None:
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
