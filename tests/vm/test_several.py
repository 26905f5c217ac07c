"""Failing tests with several machines: evidence of each, and of their network."""

import json
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pytest_virtainers.engine.docker.engine import DockerEngine

FAILING = """
import pathlib
import pytest

@pytest.mark.virtainer("a")
@pytest.mark.virtainer("b")
def test_call(vms):
    a, b = vms["a"], vms["b"]
    a.run("ping -c1 -W30 b && ping -c1 -W30 b")
    pathlib.Path("addresses").write_text(f"{a.ip} {b.ip}")
    assert not "of the test"

@pytest.mark.virtainer("c")
@pytest.mark.virtainer("slow", template=False, boot_timeout=15, user_data={"bootcmd": ["sleep 600"]})
def test_setup(vms):
    pass
"""
_IPV4, _ICMP = b"\x08\x00", 1
_REPLY, _REQUEST = 0, 8


def pings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Read the pings in a pcap file: request or reply, sender and receiver."""
    data = path.read_bytes()
    at = 24
    while at < len(data):
        (size,) = struct.unpack("<8xI4x", data[at : at + 16])
        frame = data[at + 16 : at + 16 + size]
        at += 16 + size
        if frame[12:14] == _IPV4 and frame[23] == _ICMP and frame[34] in {_REPLY, _REQUEST}:
            yield frame[34], str(IPv4Address(frame[26:30])), str(IPv4Address(frame[30:34]))


def test_evidence_of_each_machine_and_the_network_is_collected(
    pytester: pytest.Pytester, engine: DockerEngine
) -> None:
    pytester.makepyfile(test_it=FAILING)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--virtainer-capture=failed")
    result.assert_outcomes(failed=1, errors=1)

    def folder(test: str, *machines: str) -> Path:
        found = pytester.path / "virtainer-artifacts" / f"test_it-py-{test}"
        assert {each.name for each in found.iterdir()} == {*machines, "default.pcap"}
        for name in machines:
            manifest = json.loads((found / name / "manifest.json").read_text())
            assert manifest["test"] == f"test_it.py::{test}"
            assert (found / name / "overlay.qcow2").read_bytes()[:4] == b"QFI\xfb"
        result.stdout.fnmatch_lines_random(
            [f"*- virtainer {name} -*" for name in machines]
            + [f"capture: virtainer-artifacts/{found.name}/default.pcap"]
        )
        return found

    a, b = (pytester.path / "addresses").read_text().split()
    seen = [*pings(folder("test_call", "a", "b") / "default.pcap")]
    assert seen == [(_REQUEST, a, b), (_REPLY, b, a)] * 2
    folder("test_setup", "c", "slow")
    result.stdout.fnmatch_lines(["*ERROR at setup of test_setup*", "*BootTimeout: slow did not let us log in*"])
    assert not engine.api.containers(all=True, filters={"label": ["virtainers.vm=c"]})
