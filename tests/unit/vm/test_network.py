"""Faults between VMs and captures: the commands to the containers, and their answers."""

import io
import json
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typing_extensions import override

from pytest_virtainers.config.network_spec import NetworkSpec
from pytest_virtainers.errors import SpecError, VirtainerError
from pytest_virtainers.vm.capture import Capture
from pytest_virtainers.vm.network import Network
from tests.unit.memory_engine import MemoryContainer
from tests.unit.vm.fake_stream import Stream


class FakeContainer(MemoryContainer):
    def __init__(self) -> None:
        super().__init__()
        self.refuses = False
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.streams: list[Stream] = []

    @override
    def reply(self, command: list[str]) -> tuple[int, bytes]:
        word, mac, state = command
        assert word == "wire"
        if self.refuses and json.loads(state)["delay_ms"]:
            return 1, b"the host's kernel has no sch_netem"
        self.sent.append((mac, json.loads(state)))
        return 0, b""

    @override
    def stream(self, command: list[str]) -> Stream:
        assert command[0] == "capture"
        return self.streams.pop(0)


class FakeVM:
    def __init__(self, name: str) -> None:
        self.name, self.container = name, FakeContainer()
        self.left: list[Callable[[], object]] = []
        self.machine = self.on_close = self
        self.network = SimpleNamespace(label="default-isolated")

    def callback(self, function: Callable[..., object], *arguments: object) -> None:
        self.left.append(lambda: function(*arguments))

    @property
    def drops(self) -> dict[str, int]:
        """The frames to drop, by the last command."""
        return self.container.sent[-1][1]["drop"]  # type: ignore[no-any-return]


MACS = {name: f"02:42:0a:d5:00:0{number}" for number, name in enumerate("abc", 1)}
EMPTY: dict[str, Any] = {"drop": {}, "rate_kbit": None, "delay_ms": None, "jitter_ms": None}


@pytest.fixture
def network() -> Network:
    made: Any = SimpleNamespace(name="engine-lab", subnet=IPv4Network("10.1.0.0/24"), ipv6=False, driver="bridge")
    return Network(NetworkSpec("lab", "isolated"), made)


@pytest.fixture
def vms(network: Network) -> dict[str, Any]:
    made = {name: FakeVM(name) for name in "abc"}
    for name, vm in made.items():
        network.join(vm, MACS[name])  # type: ignore[arg-type]
    return made


def test_partition_works_in_both_directions_and_ends_with_its_block(network: Network, vms: dict[str, Any]) -> None:
    a, b, c = vms.values()
    with network.partition({a, b}, c):
        assert a.drops == b.drops == {MACS["c"]: 1000}
        assert c.drops == {MACS["a"]: 1000, MACS["b"]: 1000}
    assert [vm.container.sent[-1] for vm in (a, b, c)] == [(mac, EMPTY) for mac in MACS.values()]


def test_faults_add_up_and_end_separately(network: Network, vms: dict[str, Any]) -> None:
    a, b, c = vms.values()
    with network.lose(a, b, share=0.25):
        assert b.drops == {MACS["a"]: 250}
        assert not a.container.sent
        with network.partition({b}, {a, c}), network.slow(b, rate="2Mbit"):
            assert b.container.sent[-1][1] == {
                **EMPTY,
                "drop": {MACS["a"]: 1000, MACS["c"]: 1000},
                "rate_kbit": 2000,
            }
        assert b.drops == {MACS["a"]: 250}
    assert b.container.sent[-1][1] == EMPTY


def test_heal_ends_all_faults(network: Network, vms: dict[str, Any]) -> None:
    a, b, _ = vms.values()
    with network.partition(a, b):
        network.heal()
        assert a.drops == b.drops == {}
        sent = len(a.container.sent)
    assert len(a.container.sent) == sent, "a healed fault is not ended again"


def test_a_fault_that_the_kernel_refuses_leaves_nothing(network: Network, vms: dict[str, Any]) -> None:
    a, b, _ = vms.values()
    b.container.refuses = True
    said = r"^b on the network lab: the host's kernel has no sch_netem$"
    with pytest.raises(VirtainerError, match=said), network.slow(delay=0.1):
        raise AssertionError
    assert a.container.sent[-1][1] == EMPTY


def test_a_vm_that_left_has_no_faults(network: Network, vms: dict[str, Any]) -> None:
    a, b, _ = vms.values()
    with network.partition(a, b):
        a.container.ended = True
        for each in a.left:
            each()
        assert b.drops == {}
    assert a not in network.vms


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda net, vms: net.partition({vms["a"]}), "two or more groups of VMs, and each VM in one"),
        (lambda net, vms: net.partition({vms["a"]}, {vms["a"], vms["b"]}), "and each VM in one of them"),
        (
            lambda net, vms: net.partition(vms["a"], FakeVM("stranger")),
            "stranger has no card on the network lab; its first one is on",
        ),
        (
            lambda net, vms: net.lose(FakeVM("stranger"), vms["a"]),
            "stranger has no card on the network lab; its first one is on",
        ),
        (lambda net, vms: net.lose(vms["a"], vms["b"], share=0), "a share from 0.001 to 1 is needed"),
        (lambda net, _vms: net.slow(), "needs a rate or a delay"),
        (lambda net, _vms: net.slow(rate="fast"), "text such as 512kbit, 10Mbit or 1Gbit"),
    ],
)
def test_wrong_arguments_of_faults_are_refused(network: Network, vms: dict[str, Any], wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words), wrong(network, vms):
        raise AssertionError
    assert not any(vm.container.sent for vm in vms.values())


def test_addresses_must_be_in_the_subnet(network: Network) -> None:
    assert network.port("web", 7).address == "10.1.0.7"
    assert network.port("web", IPv4Address("10.1.0.9")).address == "10.1.0.9"
    assert network.port("web", "dhcp").address is network.port("web", None).address is None
    assert network.port("web", None, first=True).aliases == ("web", "web.lab")
    assert network.port("web", None).aliases == ("web.lab",)
    with pytest.raises(SpecError, match=r"ip=255: the subnet 10\.1\.0\.0/24 of the network lab has no such address"):
        network.port("web", 255)
    with pytest.raises(SpecError, match=r"web: ip=10\.2\.0\.1: it is not in the subnet 10\.1\.0\.0/24"):
        network.port("web", IPv4Address("10.2.0.1"))


def pcap(*frames: tuple[float, str, bytes], magic: int = 0xA1B2C3D4, order: str = "<") -> bytes:
    """Write what tcpdump would: frames as (time, sender, content)."""
    data = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 262144, 1)
    for time, sender, content in frames:
        frame = b"\xff" * 6 + bytes.fromhex(sender.replace(":", "")) + content
        unit = 10**9 if magic == 0xA1B23C4D else 10**6
        data += struct.pack(f"{order}IIII", int(time), round(time % 1 * unit), len(frame), len(frame)) + frame
    return data


def read(path: Path) -> list[tuple[float, bytes]]:
    data, frames = path.read_bytes(), []
    assert struct.unpack("<IHHiIII", data[:24]) == (0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    at = 24
    while at < len(data):
        seconds, rest, size, length = struct.unpack("<IIII", data[at : at + 16])
        assert size == length
        frames.append((seconds + rest / 10**9, data[at + 16 + 12 : at + 16 + size]))
        at += 16 + size
    return frames


def test_captures_merge_frames_by_time_without_duplicates(
    network: Network, vms: dict[str, Any], tmp_path: Path
) -> None:
    a, b, c = vms.values()
    gateway = "02:42:00:00:00:01"
    of_a = pcap((1.0, MACS["a"], b"a to b"), (1.5, gateway, b"from outside"), (2.25, MACS["b"], b"b to a"))
    of_b = pcap((1.1, MACS["a"], b"a to b"), (2.0, MACS["b"], b"b to a"), magic=0xA1B23C4D, order=">")
    a.container.streams = [Stream(of_a[:10], of_a[10:50], of_a[50:])]
    b.container.streams = [Stream(of_b)]
    c.container.streams = [Stream(pcap())]
    with network.capture(tmp_path / "x.pcap"):
        pass
    assert read(tmp_path / "x.pcap") == [(1.0, b"a to b"), (1.5, b"from outside"), (2.0, b"b to a")]


def test_a_capture_that_does_not_start_is_an_error(network: Network, vms: dict[str, Any], tmp_path: Path) -> None:
    streams = [Stream(pcap()), Stream(b"")]
    vms["a"].container.streams, vms["b"].container.streams = [streams[0]], [streams[1]]
    said = "b: capturing what its card 02:42:0a:d5:00:02 sends and gets failed"
    with pytest.raises(VirtainerError, match=said), network.capture(tmp_path / "x.pcap"):
        raise AssertionError
    assert [each.closed for each in streams] == [True, True]


def test_capture_refuses_a_file_that_cannot_be_created(network: Network, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), network.capture(tmp_path / "no folder" / "x.pcap"):
        raise AssertionError


def test_captures_restore_hidden_ethertypes(tmp_path: Path) -> None:
    capture, vm = Capture(hidden=True), FakeVM("a")
    frames = [b"\x88\xb5v4", b"\x88\xb6v6", b"\x08\x06arp", b"\x88\xb7x"]
    vm.container.streams = [Stream(pcap(*((1.0 + at, MACS["a"], frame) for at, frame in enumerate(frames))))]
    capture.add(vm, MACS["a"])  # type: ignore[arg-type]
    capture.stop()
    with (tmp_path / "x.pcap").open("wb") as file:
        capture.write(file)
    capture.close()
    assert [frame for _, frame in read(tmp_path / "x.pcap")] == [b"\x08\x00v4", b"\x86\xddv6", *frames[2:]]


def test_a_recorder_writes_recent_frames_and_drops_vms_that_left(tmp_path: Path) -> None:
    capture, vm = Capture(), FakeVM("a")
    vm.container.streams = [
        Stream(pcap((1.0, MACS["a"], b"early"), (2.0, MACS["a"], b"late"), (3.0, MACS["a"], b"")))
    ]
    capture.add(vm, MACS["a"])  # type: ignore[arg-type]
    capture.stop()
    with (tmp_path / "x.pcap").open("wb") as file:
        capture.write(file, since=1.5)
    assert read(tmp_path / "x.pcap") == [(2.0, b"late"), (3.0, b"")]
    capture.forget(MACS["a"])
    with (tmp_path / "x.pcap").open("wb") as file:
        capture.write(file)
    assert read(tmp_path / "x.pcap") == []


HEADERS = st.builds(
    lambda *words: struct.pack("<IIII", *words), *[st.integers(0, 2**32 - 1)] * 2, *[st.integers(0, 99)] * 2
)


@given(st.sampled_from([0xA1B2C3D4, 0xA1B23C4D]), st.lists(HEADERS | st.binary(max_size=120), max_size=9))
@example(0xA1B2C3D4, [struct.pack("<IIII", 2**32 - 1, 10**6, 0, 0)])  # one second after the last one
@example(0xA1B2C3D4, [struct.pack("<IIII", 1, 1, 2**32 - 1, 1)])
def test_a_capture_of_any_bytes_is_a_readable_file(magic: int, pieces: list[bytes]) -> None:
    capture, vm = Capture(), FakeVM("a")
    vm.container.streams = [Stream(pcap(magic=magic), *[piece for piece in pieces if piece])]
    capture.add(vm, MACS["a"])  # type: ignore[arg-type]
    capture.stop()
    written = io.BytesIO()
    try:
        capture.write(written)
    finally:
        capture.close()
    written.seek(24)
    while header := written.read(16):
        _, nanoseconds, size, _ = struct.unpack("<IIII", header)
        assert nanoseconds < 10**9
        assert len(written.read(size)) == size
