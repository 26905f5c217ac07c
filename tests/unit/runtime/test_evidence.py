"""The evidence of a VM, with fakes of QEMU (a socket) and of qemu-img."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from virtainer import evidence, machine, qmp, template
from virtainer.exit_reasons import End
from virtainer.settings import Settings

from tests.unit.fake_qcow2 import head
from tests.unit.runtime.fake_qemu import FakeQemu, listed

OVERLAY, LAYER, BASE = (
    "/mounted/local_image.qcow2",
    "/store/templates/x/local_image.qcow2",
    "/store/guests/y/disk.qcow2",
)
RUNS = {"status": "running"}


class Tools:
    """A fake `qemu-img` for a disk with these layers."""

    def __init__(self, *layers: str) -> None:
        self.layers = layers
        self.done: list[tuple[str, ...]] = []

    def run(self, *argv: str) -> str:
        self.done.append(argv[1:2] + tuple(each for each in argv[2:] if each not in {"-q", "-U"}))
        if argv[1] == "convert":
            Path(argv[-1]).write_bytes(b"disk")
        return json.dumps([{"filename": each, "format": "qcow2", "virtual-size": 5} for each in self.layers])


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    tools = Tools(OVERLAY, LAYER, BASE)
    monkeypatch.setattr(evidence, "run", tools.run)
    return tools


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qemu-system-x86_64").write_text("program")
    (tmp_path / "seed.iso").write_bytes(b"seed")
    (tmp_path / "local_image.qcow2").write_bytes(head())
    monkeypatch.setattr(template, "_PROGRAMS", tmp_path)
    monkeypatch.setattr(qmp, "SOCKET", tmp_path / "qmp.sock")
    for name, value in (("RAM", "64"), ("IMAGE_DIR", str(tmp_path)), ("TEMPLATE", str(tmp_path)), ("ACCEL", "tcg")):
        monkeypatch.setenv(name, value)


def facts(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_disk_becomes_one_layer_on_the_guest_image(
    tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qemu = FakeQemu(query_status=[RUNS])
    with qemu.listening(qmp.SOCKET):
        assert evidence.main([]) == 0
    assert facts(capsys) == {"memory": False, "base": BASE, "virtual_size": 5}
    assert qemu.commands == ["query-status", "stop", "cont"]
    copy, overlay = str(tmp_path / "evidence/overlay.qcow2"), str(tmp_path / "local_image.qcow2")
    assert tools.done == [
        ("info", "-f", "qcow2", "--backing-chain", "--output=json", overlay),
        ("convert", "-f", "qcow2", "-O", "qcow2", "-F", "qcow2", "-B", LAYER, overlay, copy),
        ("rebase", "-f", "qcow2", "-F", "qcow2", "-b", BASE, copy),
    ]
    assert (tmp_path / "evidence/seed.iso").read_bytes() == b"seed"
    assert (tmp_path / "evidence").stat().st_mode & 0o777 == 0o700


def test_evidence_of_a_layered_template_has_its_own_seed(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.layers = (OVERLAY, BASE)
    (tmp_path / "own.iso").write_bytes(b"its own")
    monkeypatch.setenv("TEMPLATE_SAVE", "on")
    monkeypatch.setenv("CLOUD_INIT_DISK", str(tmp_path / "own.iso"))
    assert evidence.main([]) == 0
    assert (tmp_path / "evidence/seed.iso").read_bytes() == b"its own"


@pytest.mark.parametrize(
    ("made", "fact"),
    [
        (head(incompatible=4), "keeps its data in another file"),
        (head(backing=b"json:{}"), "is made on 'json:{}', which is not a path"),
        (head(backing=b"nbd://192.0.2.1/x"), "is made on 'nbd://192.0.2.1/x', which is not a path"),
    ],
)
def test_an_overlay_that_names_other_files_is_not_opened(
    made: bytes, fact: str, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "local_image.qcow2").write_bytes(made)
    assert evidence.main([]) == 1
    assert capsys.readouterr().err == f"evidence: the overlay {tmp_path}/local_image.qcow2 {fact}\n"
    assert tools.done == []


def test_ended_and_paused_vms_are_not_resumed(tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    tools.layers = (OVERLAY, BASE)
    assert evidence.main([]) == 0, "QEMU has ended"
    assert facts(capsys)["base"] == BASE
    assert [name for name, *_ in tools.done] == ["info", "convert"]
    qemu = FakeQemu(query_status=[{"status": "shutdown"}])
    with qemu.listening(qmp.SOCKET):
        assert evidence.main([]) == 0
    assert qemu.commands == ["query-status"]


def test_evidence_reports_progress_while_it_copies(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growing, steps = threading.Event(), 5

    def run(*argv: str) -> str:
        if argv[1] == "convert":
            for step in range(steps):
                Path(argv[-1]).write_bytes(b"x" * (step + 1) * 2**16)
                growing.wait(0.2)
            growing.wait(0.3)  # it does no more
        return tools.run(*argv)

    monkeypatch.setattr(evidence, "run", run)
    monkeypatch.setattr(evidence, "_REPORT_SECONDS", 0.001)
    assert evidence.main([]) == 0
    said = capsys.readouterr().out
    assert 3 <= said.count("\n") <= steps + 2
    assert json.loads(said)["base"] == BASE


@pytest.mark.usefixtures("tools")
def test_memory_goes_into_a_file_that_the_command_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = [{"status": "active"}, {"status": "completed"}]
    qemu = FakeQemu(query_status=[RUNS], query_migrate=progress)
    qemu.on["migrate"] = lambda _: os.write(qemu.files[3], b"memory")
    with qemu.listening(qmp.SOCKET):
        assert evidence.main(["--memory"]) == 0
    said = facts(capsys)
    assert said["memory"] is True
    assert said["machine"]["RAM"] == 64
    assert qemu.arguments("migrate") == [{"uri": "file:/dev/fdset/3"}]
    assert qemu.commands[-1] == "cont"
    assert (tmp_path / "evidence/state").read_bytes() == b"memory"
    assert (tmp_path / "evidence/state").stat().st_mode & 0o777 == 0o600

    # Another virtainer reads it.
    folder = tmp_path / "evidence"
    (folder / "facts.json").write_text(json.dumps(said))
    resumed = Settings.from_env({"RAM": "64", "RESUME": str(folder)})
    files = template.state_to_resume(resumed, folder, None)
    os.close(files["state"])
    with pytest.raises(End, match=r"the memory in .*/evidence does not fit: RAM is 65 here, and was 64"):
        template.state_to_resume(Settings.from_env({"RAM": "65"}), folder, None)
    (folder / "state").unlink()
    with pytest.raises(End, match=r"evidence has no memory: FileNotFoundError"):
        template.state_to_resume(resumed, folder, None)


@pytest.mark.usefixtures("tools")
def test_a_failed_save_of_memory_is_reported_and_the_vm_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    qemu = FakeQemu(query_status=[RUNS], query_migrate=[{"status": "failed", "error-desc": "no room"}])
    with qemu.listening(qmp.SOCKET):
        assert evidence.main(["--memory"]) == 1
    assert capsys.readouterr().err == "evidence: migrate: no room\n"
    assert qemu.commands[-2:] == ["remove-fd", "cont"]


@pytest.mark.usefixtures("tools")
def test_memory_is_not_saved_with_added_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    present = listed(*machine.BUILT_IN, "nic2", "disk1")
    qemu = FakeQemu(query_status=[RUNS, RUNS], qom_list=[present])
    with qemu.listening(qmp.SOCKET):
        assert evidence.main(["--memory"]) == 1
        assert qemu.commands == ["query-status", "qom-list"], "it was never paused"
        said = capsys.readouterr().err
        assert said.startswith("evidence: disk1, nic2: added while the machine ran, and another one")
        assert evidence.main([]) == 0, "its disk is collected"
    assert (tmp_path / "evidence/overlay.qcow2").exists()


def test_wrong_usage_of_evidence_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.main(["--all"]) == 2
    assert capsys.readouterr().err == "usage: evidence [--memory]\n"


def test_a_vm_that_is_resumed_waits_for_its_state() -> None:
    handles: dict[str, Any] = {"base": 3, "overlay": 4, "seed": 5, "tap": 6, "console": 7, "monitor": 8, "qmp": 9}
    resumed = machine.argv(
        Settings.from_env({"RESUME": "/mounted/resume", "LINGER": "on"}),
        "raw",
        machine.Handles(**handles, kvm=None, state=11),
    )
    assert "memory-backend-ram,id=ram,size=1024M" in resumed
    assert resumed[resumed.index("-incoming") + 1] == "defer"
    assert resumed[resumed.index("-action") + 1] == "panic=none,shutdown=pause"
