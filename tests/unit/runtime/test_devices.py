"""Devices that are added and removed, and pictures of the screen: the commands to QEMU."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from virtainer import devices, machine, qmp, screen

from tests.unit.runtime.fake_qemu import FakeQemu, listed

if TYPE_CHECKING:
    from pathlib import Path

PORTS = listed("disk0", "nic0", "plug0", "plug1")
TAKEN = (
    "PCI: slot 0 function 0 already occupied by virtio-blk-pci, new func virtio-blk-pci cannot be exposed to guest."
)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "SOCKET", tmp_path / "qmp.sock")
    monkeypatch.setattr(devices, "_FILES", tmp_path)
    monkeypatch.setattr(devices, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(devices, "DEVICES_ADDED", tmp_path / "devices-added")


@pytest.mark.parametrize(
    "words",
    [
        "",
        "add-disk",
        "add-disk data 0",
        "add-disk ../data 1",
        "add-disk Data 1",
        "add-disk a-name-longer-than-20-x 1",
        "add-disk data 1 more",
        "add-nic nic1 52:54:00:76:70",
        "add-nic nic1 52:54:00:76:70:01,netdev=x",
        "remove",
        "remove a b",
        "format data",
    ],
)
def test_wrong_usage_is_reported(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert devices.main(words.split()) == 2
    assert capsys.readouterr().err.startswith("usage: device add-disk NAME MIB")


def test_a_disk_is_opened_here_and_plugged_into_the_first_free_port(tmp_path: Path) -> None:
    qemu = FakeQemu(qom_list=[PORTS], device_add=[TAKEN, {}])
    sizes: list[int] = []
    qemu.on["blockdev-add"] = lambda _: sizes.append(os.fstat(qemu.files[3]).st_size)
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["add-disk", "disk1", "64"]) == 0
    assert qemu.commands == ["add-fd", "blockdev-add", "qom-list", "device_add", "device_add", "remove-fd"]
    assert qemu.arguments("blockdev-add")[0]["file"]["filename"] == "/dev/fdset/3"
    assert [(each["bus"], each["serial"]) for each in qemu.arguments("device_add")] == [
        ("plug0", "disk1"),
        ("plug1", "disk1"),
    ]
    assert sizes == [64 * 2**20]
    assert (tmp_path / "devices-added").exists()
    assert (tmp_path / "disk1.raw").stat().st_mode & 0o777 == 0o600


def test_a_disk_that_qemu_refuses_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qemu = FakeQemu(qom_list=[PORTS], blockdev_add=["Duplicate node name"])
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["add-disk", "disk1", "64"]) == 1
    assert capsys.readouterr().err == "device: blockdev-add: Duplicate node name\n"
    assert not (tmp_path / "disk1.raw").exists()
    assert qemu.commands[-1] == "remove-fd"


def test_a_name_in_use_keeps_its_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "disk1.raw").write_bytes(b"data")
    with FakeQemu().listening(qmp.SOCKET):
        assert devices.main(["add-disk", "disk1", "64"]) == 1
    assert "File exists" in capsys.readouterr().err
    assert (tmp_path / "disk1.raw").read_bytes() == b"data"


def test_without_a_free_port_the_error_has_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qemu = FakeQemu(qom_list=[PORTS], device_add=[TAKEN] * machine.PLUGS)
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["add-nic", "nic1", "52:54:00:76:70:01"]) == 1
    assert capsys.readouterr().err == "device: all 8 slots for added devices are taken: remove one first\n"
    assert qemu.commands[-1] == "netdev_del", "nothing is left of it"
    assert not (tmp_path / "devices-added").exists()


def test_a_machine_without_ports_uses_its_bus() -> None:
    qemu = FakeQemu(qom_list=[listed("nic0")])
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["add-nic", "nic1", "52:54:00:76:70:01"]) == 0
    (added,) = qemu.arguments("device_add")
    assert (added["bus"], added["mac"], added["netdev"]) == ("pci.0", "52:54:00:76:70:01", "nic1-net")


def test_removal_waits_for_the_guest_and_deletes_the_disk(tmp_path: Path) -> None:
    (tmp_path / "disk1.raw").touch()
    qemu = FakeQemu(qom_list=[listed("disk1"), listed("disk1"), listed()], blockdev_del=["Node disk1 is in use", {}])
    with qemu.listening(qmp.SOCKET):
        assert devices.main(["remove", "disk1"]) == 0
    assert qemu.commands == ["device_del", *["qom-list"] * 3, *["blockdev-del"] * 2]
    assert not (tmp_path / "disk1.raw").exists()


def test_a_device_that_the_guest_keeps_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "_UNPLUG_SECONDS", 0.01)
    with FakeQemu(qom_list=[listed("nic1")] * 1000).listening(qmp.SOCKET):
        assert devices.main(["remove", "nic1"]) == 1
    assert capsys.readouterr().err == "device: the guest has not released nic1 in 0.01 s\n"


def test_without_a_vm_there_is_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert devices.main(["remove", "disk1"]) == 1
    assert capsys.readouterr().err.startswith("device: [Errno 2]")


def test_qemu_writes_the_picture_into_a_passed_file(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    qemu = FakeQemu()
    qemu.on["screendump"] = lambda _: os.write(qemu.files[3], b"\x89PNG picture")
    with qemu.listening(qmp.SOCKET):
        assert screen.main() == 0
    assert capfdbinary.readouterr().out == b"\x89PNG picture"
    assert qemu.arguments("screendump") == [{"filename": "/dev/fdset/3", "format": "png"}]


def test_a_refused_picture_has_qemus_message(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeQemu(screendump=["no screen"]).listening(qmp.SOCKET):
        assert screen.main() == 1
    assert capsys.readouterr().err == "screenshot: screendump: no screen\n"


def test_a_screenshot_of_a_hanging_qemu_times_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen, "_ANSWER_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(qmp.SOCKET))
        server.listen()
        thread = threading.Thread(target=lambda: print(screen.main()))
        thread.start()
        thread.join(10)
    assert capsys.readouterr() == ("1\n", "screenshot: timed out\n")
