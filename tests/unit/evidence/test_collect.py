"""Collecting evidence: each piece on its own, and a reason for each missing one."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.errors import EngineError, RootCommandTimeout, SSHError, VirtainerError
from pytest_virtainers.evidence import collect
from tests.unit.fake_machine import KEYS, OVERLAY, FakeContainer, machine

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

WITHOUT_MEMORY = {
    *("console.log", "supervisor.log", "commands.log", "screenshot.png", "journal.txt", "dmesg.txt"),
    *("overlay.qcow2", "seed.iso", "ssh_key", "manifest.json"),
}


def collected(
    vm: Any, folder: Path, *, memory: bool = False, cut: Collection[str] = (), **arguments: Any
) -> dict[str, Any]:
    collect.collect(vm, folder, memory=memory, about={"test": "test_x"}, **arguments)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    assert not {name for name in names(folder) & manifest["missing"].keys() if name not in cut}
    return manifest


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_a_running_vm_leaves_every_piece_in_a_private_folder(tmp_path: Path) -> None:
    vm = machine()
    with vm.log.entry("make", "debian") as entry:
        entry.outcome = "exit 2"
    tmp_path.chmod(0o755)
    manifest = collected(vm, tmp_path)
    assert names(tmp_path) == WITHOUT_MEMORY
    assert manifest["missing"] == {}
    assert manifest["test"] == "test_x"
    assert (manifest["spec"]["image"], manifest["user"], manifest["host_key"]) == (
        "debian-13",
        "debian",
        KEYS.host.public,
    )
    assert (tmp_path / "console.log").read_text() == "login:\n"
    assert (tmp_path / "supervisor.log").read_text() == "virtainer: guest panicked\nTraceback:\n"
    assert (tmp_path / "journal.txt").read_text() == "journalctl said\n"
    assert (tmp_path / "overlay.qcow2").read_bytes() == OVERLAY
    assert (tmp_path / "ssh_key").read_text() == KEYS.login.private
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in (".", "ssh_key")] == [0o700, 0o600]


def test_commands_of_the_collection_are_not_in_the_log(tmp_path: Path) -> None:
    vm = machine()
    vm.answers = {"journalctl": RootCommandTimeout("web: a root command did not finish within 6 s")}
    collected(vm, tmp_path)
    assert vm.log.entries == []
    assert len(vm.asked) == 3


@pytest.mark.parametrize(
    ("broken", "missing"),
    [
        ({"picture": VirtainerError("QEMU gives no picture\nat all")}, {"screenshot.png": "QEMU gives no picture"}),
        ({"answers": {"journalctl": VirtainerError("no systemd")}}, {"journal.txt": "no systemd"}),
        ({"answers": {"dmesg": OSError("it broke")}}, {"dmesg.txt": "it broke"}),
        ({"console": None}, {"console.log": "'NoneType' object has no attribute 'text'"}),
    ],
)
def test_a_failing_piece_is_reported_and_the_others_are_collected(
    broken: dict[str, Any], missing: dict[str, str], tmp_path: Path
) -> None:
    vm = machine()
    for name, value in broken.items():
        setattr(vm, name, value)
    manifest = collected(vm, tmp_path)
    assert {name: reason.partition(": ")[2] for name, reason in manifest["missing"].items()} == missing
    assert names(tmp_path) == WITHOUT_MEMORY - missing.keys()


def test_a_full_disk_loses_only_the_pieces_that_do_not_fit(tmp_path: Path) -> None:
    vm = machine()
    vm.container.files["overlay.qcow2"] = bytes(200_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        manifest = collected(vm, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in manifest["missing"]["overlay.qcow2"]
    assert names(tmp_path) == WITHOUT_MEMORY - {"overlay.qcow2"}, "no incomplete file"


LONG = RootCommandTimeout("web: a root command did not finish within 6 s. Raise timeout= if it is slow")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(LONG, "not finished after 6 s"), (SSHError("web: it broke. The last\nlines"), "web: it broke.")],
)
def test_the_beginning_of_an_interrupted_journal_is_kept(error: Exception, reason: str, tmp_path: Path) -> None:
    vm = machine()
    vm.breaks = {"journalctl": error}
    missing = collected(vm, tmp_path, cut=["journal.txt"])["missing"]
    assert missing.keys() == {"journal.txt"}
    assert missing["journal.txt"].startswith(f"its end: {reason}")
    assert "\n" not in missing["journal.txt"]
    assert (tmp_path / "supervisor.log").read_text() == "virtainer: guest panicked\nTraceback:\n"
    assert (tmp_path / "journal.txt").read_text() == "journalctl said\n"


def test_the_reason_for_a_missing_journal_is_short(tmp_path: Path) -> None:
    vm = machine()
    vm.answers = {"journalctl": LONG}
    assert collected(vm, tmp_path)["missing"] == {"journal.txt": "VirtainerError: not finished after 6 s"}


def test_a_core_dump_that_cannot_be_copied_is_reported(tmp_path: Path) -> None:
    vm = machine()
    vm.answers = {"coredump": b"/var/crash/core.1\n"}
    assert collected(vm, tmp_path)["missing"] == {"cores/core-1-core.1": "tar: it broke"}
    assert names(tmp_path) == WITHOUT_MEMORY


def test_core_dumps_that_cannot_be_listed_are_reported(tmp_path: Path) -> None:
    vm = machine()
    vm.answers = {"coredump": SSHError("web: it broke")}
    assert collected(vm, tmp_path)["missing"] == {"cores": "SSHError: web: it broke"}
    assert names(tmp_path) == WITHOUT_MEMORY


def test_a_huge_journal_is_truncated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_MAX_LOG_BYTES", 2**20)
    vm = machine()
    vm.answers = {"journalctl": b"flood " * 2**20}
    missing = collected(vm, tmp_path, cut=["journal.txt"])["missing"]
    assert missing == {"journal.txt": "its end: it is longer than 1 MiB"}
    assert (tmp_path / "journal.txt").stat().st_size == 2**20


def test_a_vm_without_ssh_gets_no_commands(tmp_path: Path) -> None:
    vm = machine()
    vm.alive = False
    manifest = collected(vm, tmp_path)
    assert manifest["missing"] == dict.fromkeys(("journal.txt", "dmesg.txt"), "the VM could not be reached over SSH")
    assert vm.asked == []


def test_memory_is_collected_on_request(tmp_path: Path) -> None:
    vm = machine()
    assert collected(vm, tmp_path, memory=True)["machine"]["memory"] is True
    assert (tmp_path / "memory.state").read_bytes() == b"memory"
    assert vm.container.asked == [["evidence", "--memory"]]


def test_the_disk_is_collected_if_the_memory_fails(tmp_path: Path) -> None:
    vm = machine()
    vm.container.evidence = {("--memory",): (1, b"evidence: migrate: no room\n")}
    manifest = collected(vm, tmp_path, memory=True)
    assert manifest["missing"] == {"memory.state": "evidence: migrate: no room"}
    assert manifest["machine"]["memory"] is False
    assert names(tmp_path) == WITHOUT_MEMORY


def test_missing_memory_without_qemu_is_reported(tmp_path: Path) -> None:
    vm = machine()
    vm.container.evidence = {("--memory",): (0, b'{"memory": false}\n')}
    manifest = collected(vm, tmp_path, memory=True)
    assert manifest["missing"] == {"memory.state": "QEMU has ended, or does not answer"}
    assert names(tmp_path) == WITHOUT_MEMORY


@pytest.mark.parametrize("ends", [0, 1])
def test_copies_in_the_container_are_removed(ends: int, tmp_path: Path) -> None:
    vm = machine()
    if ends:
        vm.container.evidence = {(): (ends, b"evidence: no space left\n")}
    collected(vm, tmp_path)
    assert vm.container.files == {}


@pytest.mark.parametrize("name", ["seed.iso", "state"])
def test_the_disk_is_collected_if_other_files_cannot_be_copied(name: str, tmp_path: Path) -> None:
    vm = machine()
    del vm.container.files[name]
    manifest = collected(vm, tmp_path, memory=True)
    assert manifest["missing"].keys() == {"seed.iso" if name == "seed.iso" else "memory.state"}
    assert manifest["machine"]["memory"] is (name != "state")
    assert (tmp_path / "overlay.qcow2").read_bytes() == OVERLAY


def test_a_missing_disk_is_reported(tmp_path: Path) -> None:
    vm = machine()
    vm.container.evidence = {(): (1, b"evidence: no space left\n")}
    manifest = collected(vm, tmp_path)
    assert manifest["missing"] == {"overlay.qcow2": "VirtainerError: evidence: no space left"}
    assert names(tmp_path) == WITHOUT_MEMORY - {"overlay.qcow2", "seed.iso"}


def test_a_stalled_copy_of_the_disk_is_abandoned(tmp_path: Path) -> None:
    vm = machine()
    vm.scaled = lambda seconds: 10 * seconds
    vm.container.evidence = {("--memory",): EngineError("evidence in web was silent for 400 s")}
    manifest = collected(vm, tmp_path, memory=True)
    assert manifest["missing"] == {"overlay.qcow2": "EngineError: evidence in web was silent for 400 s"}
    assert vm.container.asked == [["evidence", "--memory"]], "only one attempt"
    assert vm.container.patience == 400.0
    assert names(tmp_path) == WITHOUT_MEMORY - {"overlay.qcow2", "seed.iso"}


def test_the_disk_of_a_removed_container_is_read_by_another(tmp_path: Path) -> None:
    vm, opened = machine(), []
    vm.container.ended = True

    @contextmanager
    def rescue(rescued: Any) -> Iterator[Any]:
        opened.append(rescued)
        yield FakeContainer()

    assert collected(vm, tmp_path, rescue=rescue)["missing"] == {}
    assert opened == [vm]
    assert vm.container.asked == []


def test_the_disk_of_a_failed_template_is_in_the_store(tmp_path: Path) -> None:
    vm = machine()
    vm.folder = vm.container.folder = "/store/.scratch-1"
    assert collected(vm, tmp_path)["missing"] == {}
    assert (tmp_path / "overlay.qcow2").read_bytes() == OVERLAY


def test_the_seed_is_collected_without_its_container(tmp_path: Path) -> None:
    vm = machine()
    vm.seed_iso, vm.container.ended = b"its seed", True
    rescuer = FakeContainer()
    del rescuer.files["seed.iso"]  # it was only in the removed container
    assert collected(vm, tmp_path, rescue=lambda _: nullcontext(rescuer))["missing"] == {}
    assert (tmp_path / "seed.iso").read_bytes() == b"its seed"
    assert (tmp_path / "seed.iso").stat().st_mode & 0o777 == 0o600


def test_pieces_on_this_side_are_collected_without_an_engine(tmp_path: Path) -> None:
    vm = machine()
    vm.container.ended, vm.alive, vm.picture = True, False, EngineError("connection refused")

    def rescue(_vm: Any) -> Any:
        raise EngineError("connection refused")

    manifest = collected(vm, tmp_path, rescue=rescue)
    assert manifest["missing"].keys() == {"screenshot.png", "journal.txt", "dmesg.txt", "overlay.qcow2"}
    assert manifest["missing"]["overlay.qcow2"] == "EngineError: connection refused"
