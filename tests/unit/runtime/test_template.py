"""Templates inside a virtainer: facts that must agree, commands to QEMU (a fake), and lines of the helper."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from virtainer import clone_agent, digests, guest_disk, machine, overlay, protocol, qmp, snapshot, template
from virtainer.exit_reasons import End, Reason
from virtainer.settings import Settings

from tests.unit.runtime.fake_qemu import FakeQemu

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def qemu_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "qemu-system-x86_64").write_text("program")
    monkeypatch.setattr(template, "_PROGRAMS", tmp_path)
    monkeypatch.setattr(template, "FACTS", tmp_path / "facts.json")
    return tmp_path / "qemu-system-x86_64"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a folder as `save` leaves it, except for QEMU's own files."""
    base, folder, seed = tmp_path / "base", tmp_path / "saved", tmp_path / "seed.iso"
    base.write_bytes(b"disk" * 4096)
    seed.write_bytes(b"seed")
    folder.mkdir()
    settings = Settings.from_env({"IMAGE_DIR": str(folder), "RAM": "64"})
    template.record(settings, None, guest_disk.Base(base, "raw", 16384, guest_disk.fingerprint(base)), seed)
    for fd in template.new_files(settings).values():
        os.close(fd)
    overlay.path(folder).write_bytes(b"layer")
    template.complete(folder, json.loads(template.FACTS.read_text())["facts"])
    return folder


def test_load_returns_the_recorded_facts(saved: Path, tmp_path: Path) -> None:
    found = template.load(Settings.from_env({"RAM": "64"}), saved, None)
    assert (found.base.path, found.base.format, found.base.size) == (tmp_path / "base", "raw", 16384)
    assert found.disk_size == 40 * 2**30
    assert found.seed.read_bytes() == b"seed"
    assert found.layer.path == saved / "local_image.qcow2"
    assert (saved / "ram").stat().st_size == 64 * 2**20


@pytest.mark.parametrize(
    ("env", "complaint"),
    [({"RAM": "65"}, "RAM is 65 here, and was 64"), ({"RAM": "64", "CPU": "2"}, "CPU is 2 here, and was 1")],
)
def test_a_template_of_another_machine_is_refused(saved: Path, env: dict[str, str], complaint: str) -> None:
    with pytest.raises(End, match=complaint) as caught:
        template.load(Settings.from_env(env), saved, None)
    assert caught.value.reason is Reason.TEMPLATE


def test_another_qemu_and_another_guest_disk_are_refused(saved: Path, qemu_binary: Path, tmp_path: Path) -> None:
    settings = Settings.from_env({"RAM": "64"})
    (tmp_path / "base").write_bytes(b"Disk" * 4096)
    with pytest.raises(End, match="was made on another guest disk"):
        template.load(settings, saved, None)
    qemu_binary.write_text("another program")
    with pytest.raises(End, match="qemu is"):
        template.load(settings, saved, None)


def test_a_template_of_a_machine_with_other_devices_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_hpet = machine.board(Settings.from_env({}))._replace(machine="pc-q35-10.0")
    monkeypatch.setitem(machine.BOARDS, "amd64", with_hpet)
    with pytest.raises(End, match=r"machine is 'pc-q35-10\.0' here, and was 'pc-q35-10\.0,.*hpet=off'"):
        template.load(Settings.from_env({"RAM": "64"}), saved, None)


def test_evidence_without_a_machine_type_is_from_an_earlier_version() -> None:
    here = template.machine_facts(Settings.from_env({}), None)
    earlier = {name: value for name, value in here.items() if name != "machine"}
    assert template.difference(earlier, here) == (
        f"machine is {here['machine']!r} here, and was 'that of an earlier version'"
    )


@pytest.mark.parametrize("content", [None, "no JSON", "{}"])
def test_a_folder_without_a_template_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "template.json").write_text(content)
    with pytest.raises(End, match="is not a template"):
        template.load(Settings.from_env({}), tmp_path, None)


def test_a_missing_file_is_reported(saved: Path) -> None:
    (saved / "state").unlink()
    found = template.load(Settings.from_env({"RAM": "64"}), saved, None)
    with pytest.raises(End, match=r"is incomplete: .*No such file"):
        template.open_files(found, restore=True)
    for fd in template.open_files(found, restore=False).values():
        os.close(fd)


@pytest.mark.parametrize("name", ["ram", "state", "local_image.qcow2"])
def test_a_damaged_file_is_reported(saved: Path, name: str) -> None:
    found = template.load(Settings.from_env({"RAM": "64"}), saved, None)
    (saved / name).chmod(0o600)
    with (saved / name).open("r+b") as file:
        file.seek(0 if name != "state" else 5000)
        file.write(b"nonsense")
    with pytest.raises(End, match=f"is damaged: {name} has changed"):
        template.open_files(found, restore=True)


def test_each_file_has_a_digest_and_becomes_read_only(saved: Path) -> None:
    names = {"ram", "state", "local_image.qcow2", "seed.iso"}
    assert all((saved / name).stat().st_mode & 0o777 == 0o444 for name in names | {"template.json"})
    assert {row["file"]: row["sha256"] == row["was"] for row in digests.verify(saved)} == dict.fromkeys(names, True)
    (saved / "ram").chmod(0o644)
    with (saved / "ram").open("r+b") as file:
        file.seek(12345678)  # where there is no sample
        file.write(b"x")
    found = template.load(Settings.from_env({"RAM": "64"}), saved, None)
    for fd in template.open_files(found, restore=True).values():
        os.close(fd)
    assert [row["file"] for row in digests.verify(saved) if row["sha256"] != row["was"]] == ["ram"]


@pytest.mark.skipif(os.geteuid() != 0, reason="files in the store are root's, and its template's are not writable")
def test_another_template_is_saved_from_copies_of_one(saved: Path, tmp_path: Path) -> None:
    (saved / "ram").chmod(0o644)
    with (saved / "ram").open("r+b") as file:
        file.seek(2**22)
        file.write(b"page")
    facts = json.loads((saved / "template.json").read_text())
    facts["prints"]["ram"] = guest_disk.fingerprint(saved / "ram")
    (saved / "template.json").write_text(json.dumps(facts))
    folder = tmp_path / "next"
    folder.mkdir()
    settings = Settings.from_env({"RAM": "64", "TEMPLATE_SAVE": "on", "IMAGE_DIR": str(folder)})
    found = template.load(settings, saved, None)
    files = template.copy_files(settings, found)
    os.pwrite(files["ram"], b"changed", 2**22)
    assert os.pread(files["origin"], 5, 0) == (saved / "state").read_bytes()[:5]
    os.write(files["state"], b"another state")
    for fd in files.values():
        os.close(fd)
    assert overlay.path(folder).read_bytes() == b"layer"
    assert overlay.base_record(overlay.path(folder)).read_text().strip() == found.base.fingerprint
    assert (folder / "ram").stat().st_size == (saved / "ram").stat().st_size
    assert (folder / "ram").stat().st_blocks < 2**17, "holes stay holes"
    with (saved / "ram").open("rb") as file:
        assert os.pread(file.fileno(), 7, 2**22) == b"page\0\0\0"


def test_a_damaged_template_is_not_copied(saved: Path, tmp_path: Path) -> None:
    settings = Settings.from_env({"RAM": "64", "TEMPLATE_SAVE": "on", "IMAGE_DIR": str(tmp_path / "next")})
    found = template.load(settings, saved, None)
    overlay.path(saved).chmod(0o644)
    overlay.path(saved).write_bytes(b"other")
    with pytest.raises(End, match=r"is damaged: local_image\.qcow2 has changed"):
        template.copy_files(settings, found)


def test_a_processor_is_its_model_and_flags() -> None:
    cpu = "processor\t: {}\nmodel name\t: Fast\nflags\t\t: fpu svm\nbogomips\t: {}\n\n"
    assert template.processor(cpu.format(0, 1) + cpu.format(1, 2)) == "Fast; fpu svm"
    arm = "processor\t: {}\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n"
    assert template.processor(arm.format(0) + arm.format(1)) == "fp asimd; 0x41; 0xd0c"


def test_architectures_differ_and_the_default_is_amd64() -> None:
    here = {"RAM": 1024, "ARCH": "arm64"}
    assert template.difference({"RAM": 1024}, here) == "ARCH is 'arm64' here, and was 'amd64'"
    assert template.difference({"RAM": 1024}, {**here, "ARCH": "amd64"}) is None
    assert template.difference(here, here) is None


def test_a_clone_maps_the_ram_privately_and_a_template_does_not() -> None:
    common: dict[str, Any] = {"base": 3, "overlay": 4, "seed": 5, "tap": 6, "console": 7, "monitor": 8, "qmp": 9}
    common |= {"kvm": None, "ram": 10, "state": 11, "port": 12}
    settings = Settings.from_env({"RAM": "64"})
    saving = Settings.from_env({"RAM": "64", "TEMPLATE_SAVE": "on"})
    builder = machine.argv(saving, "raw", machine.Handles(**common))
    clone = machine.argv(settings, "raw", machine.Handles(**common, layer=13))
    file = "memory-backend-file,id=ram,size=64M,mem-path=/proc/self/fd/10"
    assert f"{file},share=on" in builder
    assert "-incoming" not in builder
    assert f"{file},share=off,readonly=on,rom=off" in clone
    assert clone[clone.index("-incoming") + 1] == "defer"
    nodes = {node["node-name"]: node for node in (json.loads(word) for word in clone if word.startswith("{"))}
    assert (nodes["disk"]["backing"], nodes["layer"]["backing"], nodes["layer"]["read-only"]) == (
        "layer",
        "base",
        True,
    )
    layer = machine.argv(saving, "raw", machine.Handles(**common, origin=14))
    assert f"{file},share=on" in layer, "changes while it is provisioned are saved"
    assert layer[layer.index("-incoming") + 1] == "defer"
    sets = [layer[number + 1] for number, word in enumerate(layer) if word == "-add-fd"]
    assert {"fd=11,set=5", "fd=14,set=5"} <= set(sets), "one to write to, one to read"
    cold = machine.argv(settings, "raw", machine.Handles(**{**common, "ram": None, "state": None}, layer=13))
    assert "-incoming" not in cold


class Qemu:
    """Answers each command with the next of its replies, and records the commands."""

    def __init__(self, **replies: list[dict[str, Any]]) -> None:
        self.asked: list[str] = []
        self._replies = {name.replace("_", "-"): each for name, each in replies.items()}
        self.ours, theirs = socket.socketpair()
        threading.Thread(target=self._answer, args=(theirs,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                command = json.loads(line)
                name = command["execute"]
                self.asked.append(name)
                replies = self._replies.get(name)
                reply = {"return": {}} if not replies else replies.pop(0)
                answer = json.dumps({"event": "STOP"}) + "\n" + json.dumps({**reply, "id": command.get("id")}) + "\n"
                connection.sendall(answer.encode())


def test_a_clone_resumes_after_its_state_was_loaded() -> None:
    status = [{"return": {"status": each}} for each in ("inmigrate", "inmigrate", "paused")]
    qemu = Qemu(query_status=status)
    template.resume(
        qmp.Monitor(qemu.ours),
        ram_from_file=True,
        before_it_runs=lambda _seconds: qemu.asked.append("before_it_runs"),
    )
    assert qemu.asked == [
        "qmp_capabilities",
        *("migrate-set-capabilities", "migrate-incoming"),
        *("query-status", "query-status", "query-status"),
        *("before_it_runs", "cont", "migrate-set-capabilities"),
    ]


def test_a_refusal_names_the_command() -> None:
    qemu = Qemu(migrate_incoming=[{"error": {"desc": "no such file"}}])
    with pytest.raises(End, match="the template does not restore: migrate-incoming: no such file"):
        template.resume(qmp.Monitor(qemu.ours), ram_from_file=True, before_it_runs=lambda _seconds: None)


def test_a_silent_qemu_times_out() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.05)
    with ours, theirs, pytest.raises(End, match="does not restore: timed out"):
        template.resume(qmp.Monitor(ours), ram_from_file=True, before_it_runs=lambda _seconds: None)


def test_a_failed_save_reports_the_reason() -> None:
    qemu = Qemu(
        query_migrate=[{"return": {"status": "active"}}, {"return": {"status": "failed", "error-desc": "full"}}]
    )
    with pytest.raises(qmp.Refused, match="migrate: full"):
        template.save(qmp.Monitor(qemu.ours))


def test_a_machine_with_added_devices_is_not_saved() -> None:
    added = {"name": "disk1", "type": "child<virtio-blk-pci>"}
    qemu = Qemu(qom_list=[{"return": [added]}])
    with pytest.raises(qmp.Refused, match="disk1: added while the machine ran; its clones would have no such device"):
        template.save(qmp.Monitor(qemu.ours))
    assert "stop" not in qemu.asked


def test_save_without_preparation_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert template.main() == 1
    assert capsys.readouterr().err == "save: this virtainer was not started with TEMPLATE_SAVE=on\n"


@pytest.mark.parametrize("action", ["save", "load", "delete"])
def test_a_snapshot_waits_for_its_job_and_dismisses_it(action: str) -> None:
    job = f"{action}-s1"
    states = [{"return": [{"id": "other"}, {"id": job, "status": each}]} for each in ("running", "concluded")]
    qemu = Qemu(query_jobs=states)
    snapshot.run(qmp.Monitor(qemu.ours), action, "s1")
    assert qemu.asked[1:] == [f"snapshot-{action}", "query-jobs", "query-jobs", "job-dismiss"]


def test_a_failed_snapshot_reports_the_reason_and_leaves_no_job() -> None:
    failed = {"id": "load-s9", "status": "concluded", "error": "Snapshot 's9' does not exist"}
    qemu = Qemu(query_jobs=[{"return": [failed]}])
    with pytest.raises(qmp.Refused, match="Snapshot 's9' does not exist"):
        snapshot.run(qmp.Monitor(qemu.ours), "load", "s9")
    assert qemu.asked[-1] == "job-dismiss"


@pytest.mark.parametrize("words", [[], ["save"], ["keep", "a"], ["save", "a b"], ["load", "a", "--helper"]])
def test_wrong_usage_of_snapshot_is_reported(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert snapshot.main(words) == 2
    assert capsys.readouterr().err.startswith("usage: snapshot save|load|delete NAME")


def test_a_snapshot_that_requires_a_helper_is_refused_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clone_agent, "WAITS", tmp_path / "waits")
    monkeypatch.setattr(qmp, "SOCKET", tmp_path / "qmp.sock")
    opened, closed = ([{"label": protocol.CLONE_DEVICE, "frontend-open": each}] for each in (True, False))
    done = [{"id": "save-a", "status": "concluded"}]
    fake = FakeQemu(query_chardev=[opened, [], closed, opened], query_jobs=[done])
    words = ["save", "a", "--helper"]
    with fake.listening(qmp.SOCKET):
        assert snapshot.main(words) == 3, "it has never reported that it waits"
        clone_agent.WAITS.touch()
        assert [snapshot.main(words) for _ in range(3)] == [3, 3, 0]
    assert capsys.readouterr().err == "snapshot: no helper waits in the guest\n" * 3
    assert fake.arguments("snapshot-save") == [
        {"job-id": "save-a", "tag": "a", "devices": ["disk"], "vmstate": "disk"}
    ]


@pytest.mark.parametrize(
    ("line", "event", "fields"),
    [
        (b"ready\n", "helper-ready", {}),
        (b"done db 99.990000\n", "helper-done", {"hostname": "db", "clock_ms": pytest.approx(-10)}),
        (b"\xff\x00", "helper-unexpected", {"line": "\\xff\0"}),
        (b"done db now\n", "helper-unexpected", {"line": "done db now"}),
        (b"\n", "helper-unexpected", {"line": ""}),
        (b"x" * 4096, "helper-unexpected", {"line": "x" * 100}),
    ],
)
def test_the_helpers_lines_are_parsed(line: bytes, event: str, fields: dict[str, Any]) -> None:
    assert clone_agent.parse(line, 100.0) == (event, fields)


def test_only_snapshots_with_a_waiting_helper_notify_it(tmp_path: Path) -> None:
    waits = tmp_path / "waits"
    waits.touch()  # left over
    ours, theirs = socket.socketpair()
    theirs.settimeout(0.2)
    supervisor = clone_agent.CloneAgent(ours, "db", waits)
    assert not waits.exists()

    def got_an_order() -> bool:
        try:
            return theirs.recv(4096).startswith(b"db ")
        except TimeoutError:
            return False

    supervisor.after_snapshot("save", "without")
    assert not got_an_order()
    theirs.sendall(b"what?\n" + clone_agent.READY)
    while not waits.exists():
        pass
    supervisor.after_snapshot("save", "with")
    assert got_an_order()
    assert not waits.exists()
    supervisor.after_snapshot("load", "without")
    assert not got_an_order()
    for _ in range(2):
        supervisor.after_snapshot("load", "with")
        assert got_an_order()
    theirs.sendall(b"done db 1.000000\n")
    while not waits.exists():
        pass
    supervisor.after_snapshot("save", "again")
    assert got_an_order()
    theirs.sendall(b"done db 1.000000\n")
    while not waits.exists():
        pass
    waits.unlink()
    supervisor.after_snapshot("save", "with")  # saved again, when no helper waits
    assert not got_an_order()
    supervisor.after_restore(clone=True)
    assert got_an_order()
    supervisor.after_restore(clone=False)
    assert theirs.recv(4096) == b"\n"
    theirs.close()
    ours.close()
