"""Captures: how the containers' frames become one file."""

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.vm.capture import Capture
from pytest_virtainers.vm.network import Network
from tests.unit.vm.fake_network import MACS, FakeVM
from tests.unit.vm.fake_stream import Stream


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
@example(0xA1B2C3D4, [struct.pack("<IIII", 2**32 - 1, 10**6, 0, 0)])  # one second behind the last one there is
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
