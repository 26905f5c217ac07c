"""Folders of evidence, read again: what may be wrong with them, and what a container is given of them."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers import cli, evidence, resume
from pytest_virtainers.errors import BadTemplate, ImageError, QEMUCrashed, SpecError
from tests.unit.fake_machine import OVERLAY, machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GUEST = {"key": "debian-13-x", "digest": "d" * 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Evidence with memory, as it is written."""
    vm = machine()
    vm.name = "db"
    vm._container.files["overlay.qcow2"] = OVERLAY * 1000
    evidence.collect(vm, tmp_path, memory=True, about={"guest": GUEST})
    return tmp_path


def change(folder: Path, **facts: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_folder_without_a_manifest_is_none_of_evidence(tmp_path: Path) -> None:
    for content in (None, "no JSON"):
        if content:
            (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(SpecError, match=r"is no folder of evidence: manifest\.json: "):
            resume.read(tmp_path)


def test_evidence_of_another_version_is_refused(folder: Path) -> None:
    change(folder, format=99)
    with pytest.raises(SpecError, match=r"was written by another version \(99, not 1\)"):
        resume.read(folder)


def test_why_there_is_no_disk_is_told(folder: Path) -> None:
    (folder / "overlay.qcow2").unlink()
    with pytest.raises(SpecError, match=r"has no disk to start from: it is not there$"):
        resume.read(folder)
    change(folder, missing={"overlay.qcow2": "EngineError: no room"})
    with pytest.raises(SpecError, match=r"has no disk to start from: EngineError: no room$"):
        resume.read(folder)


def test_the_command_says_it_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_virtainers.manager.Manager", lambda *_: nullcontext())
    assert cli.main(["resume", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"virtainers: {tmp_path} is no folder of evidence")


class Manager:
    """Has these guest images, by what images are called and in the store; notes what it is to start."""

    def __init__(self, *, stored: str | None, called_so: str) -> None:
        self.stored, self.called_so = stored, called_so
        self.started: dict[str, Any] = {}

    @contextmanager
    def store(self) -> Iterator[Any]:
        def manifest(place: str) -> object:
            assert place == "guests/debian-13-x"
            return {"disk": {"sha256": self.stored}} if self.stored else None

        yield SimpleNamespace(manifest=manifest)

    def guest(self, image: str, arch: str) -> Any:
        assert (image, arch) == ("debian-13", "amd64")
        return SimpleNamespace(digest=self.called_so)

    def start_kept(self, spec: object, **arguments: Any) -> str:
        self.started = {"spec": spec, **arguments}
        return "a VM"


def guest(folder: Path, manager: Manager) -> Any:
    return resume.guest(manager, resume.read(folder))  # type: ignore[arg-type]


def test_the_very_guest_image_is_found_by_its_digest_wherever_it_is(folder: Path) -> None:
    kept = guest(folder, Manager(stored=GUEST["digest"], called_so="e" * 64))
    assert (kept.key, kept.user, kept.digest) == ("debian-13-x", "debian", GUEST["digest"])
    for stored in (None, "e" * 64):
        assert guest(folder, Manager(stored=stored, called_so=GUEST["digest"])).digest == GUEST["digest"]


def test_another_guest_image_is_refused_with_both_digests(folder: Path) -> None:
    with pytest.raises(
        ImageError, match=r"on debian-13 with sha256 d{64}, and what is called so now has sha256 e{64}:"
    ):
        guest(folder, Manager(stored="e" * 64, called_so="e" * 64))


def launched(folder: Path, **how: bool) -> tuple[Manager, dict[str, bytes]]:
    """Resume, and unpack what the container's folder was given."""
    manager = Manager(stored=GUEST["digest"], called_so="")
    assert resume.launch(manager, folder, **how) == "a VM"  # type: ignore[arg-type, comparison-overlap]
    with tarfile.open(fileobj=io.BytesIO(b"".join(manager.started["disk"]()))) as tar:
        files = {each.name: tar.extractfile(each) for each in tar}
        return manager, {name: content.read() for name, content in files.items() if content}


def test_a_machine_goes_on_with_its_disk_seed_keys_and_memory(folder: Path) -> None:
    manager, files = launched(folder)
    assert files.keys() == {"local_image.qcow2", "resume/facts.json", "resume/state"}
    assert files["local_image.qcow2"] == OVERLAY * 1000
    assert files["resume/state"] == b"memory"
    assert json.loads(files["resume/facts.json"])["memory"] is True
    started = manager.started
    assert started["environment"] == {"RESUME": "/mounted/resume"}
    assert (started["seed_iso"], started["user"]) == (b"seed", "debian")
    assert (started["keys"].login.private, started["keys"].host.public) == ("PRIVATE", "ssh-ed25519 AAAA")
    assert (started["spec"].name, started["spec"].ram, started["spec"].template) == ("web", 1024, False)


@pytest.mark.parametrize(("had", "gets"), [(6.0, 300.0), (900.0, 900.0)])
def test_a_machine_that_had_too_little_time_to_boot_gets_the_usual(had: float, gets: float, folder: Path) -> None:
    spec = json.loads((folder / "manifest.json").read_text())["spec"]
    change(folder, spec={**spec, "boot_timeout": had})
    assert resume.read(folder).spec.boot_timeout == gets


def test_without_memory_or_seed_it_boots_from_its_disk(folder: Path) -> None:
    change(folder, machine={"memory": False})
    (folder / "seed.iso").unlink()
    manager, files = launched(folder)
    assert files.keys() == {"local_image.qcow2"}
    assert (manager.started["environment"], manager.started["seed_iso"]) == ({}, b"")


def test_its_disk_boots_without_its_memory_on_request(folder: Path) -> None:
    manager, files = launched(folder, disk_only=True)
    assert files.keys() == {"local_image.qcow2"}
    assert manager.started["environment"] == {}


def test_memory_that_does_not_fit_does_not_cost_the_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait() -> None:
        raise BadTemplate("web has ended: the memory in /mounted/resume does not fit: QEMU")

    folder = tmp_path / "a test"
    monkeypatch.setattr("pytest_virtainers.manager.Manager", lambda *_: nullcontext())
    vm = SimpleNamespace(console_command="docker exec", wait_until_resumed=wait)
    monkeypatch.setattr(resume, "launch", lambda *_, disk_only: vm)
    assert cli.main(["resume", str(folder)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == [
        f"virtainers: web has ended: the memory in {folder}/memory.state does not fit: QEMU",
        f"virtainers: to boot its disk without its memory: virtainers resume --disk-only '{folder}'",
    ]


def test_where_qemu_itself_crashes_it_is_started_anew_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, closed = [], []

    def wait() -> None:
        raise QEMUCrashed("web has ended: QEMU ended by itself (SIGABRT)")

    def launch(*_: object, disk_only: bool) -> SimpleNamespace:
        tries.append(disk_only)
        return SimpleNamespace(console_command="", wait_until_resumed=wait, close=lambda: closed.append(len(tries)))

    monkeypatch.setattr("pytest_virtainers.manager.Manager", lambda *_: nullcontext())
    monkeypatch.setattr(resume, "launch", launch)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["resume", "--disk-only", str(tmp_path)]) == 1
    assert (tries, closed) == ([True, True], [1])
    said = capsys.readouterr().err
    assert said.count("QEMU ended by itself (SIGABRT)") == 2
    assert said.count("virtainers: QEMU has crashed: starting it anew, once\n") == 1
