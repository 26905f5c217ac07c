"""Resuming from evidence: checks of the folder, and the files that the container gets."""

from __future__ import annotations

import io
import json
import os
import tarfile
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers import cli
from pytest_virtainers.errors import BadTemplate, ImageError, QEMUCrashed, SpecError
from pytest_virtainers.evidence import collect, resume
from tests.unit.fake_machine import KEYS, OVERLAY, machine
from tests.unit.fake_qcow2 import head

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_virtainers.launching.bring_up import SavedVM

GUEST = {"key": "debian-13-x", "digest": "d" * 64}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return this user's cache folder, which has the key of the seals."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "pytest-virtainers"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Collect evidence with memory."""
    vm = machine()
    vm.name = "db"
    vm.container.files["overlay.qcow2"] = OVERLAY * 1000
    collect.collect(vm, tmp_path, memory=True, about={"guest": GUEST})
    return tmp_path


@pytest.fixture
def untrusted(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return evidence of another user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("another cache")))
    return folder


def change(folder: Path, **facts: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    for content, fact in (
        (None, "there is no such file. Name the folder of one VM"),
        ("no JSON", "not a manifest of evidence: Expecting"),
    ):
        if content:
            (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(SpecError, match=rf"^{tmp_path}/manifest\.json: {fact}"):
            resume.read(tmp_path)


def test_evidence_of_another_version_is_refused(folder: Path) -> None:
    change(folder, format=99)
    with pytest.raises(
        SpecError,
        match=r"/manifest\.json: format=99: it was written by another version; this version reads format 1$",
    ):
        resume.read(folder)


def test_a_missing_disk_is_reported_with_the_reason(folder: Path) -> None:
    (folder / "overlay.qcow2").unlink()
    with pytest.raises(SpecError, match=r"has no disk to start from: the file is missing$"):
        resume.read(folder)
    change(folder, missing={"overlay.qcow2": "EngineError: no room\x1b[2J"})
    with pytest.raises(SpecError, match=r"has no disk to start from: 'EngineError: no room\\x1b\[2J'$"):
        resume.read(folder)


def test_the_command_reports_errors_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_virtainers.launching.build.build_launcher", lambda *_: nullcontext())
    assert cli.main(["resume", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"virtainers: {tmp_path}/manifest.json: there is no such file. "
        "Name the folder of one VM: virtainer-artifacts/TEST/VM\n"
    )


class FakeLauncher:
    """A launcher with one guest image in the store and one by name; it records what it starts."""

    def __init__(self, *, stored: str | None, named: str) -> None:
        self.stored, self.named = stored, named
        self.started: dict[str, Any] = {}
        self.store, self.guests = SimpleNamespace(open=self._open), SimpleNamespace(get=self._get)
        self.asked_for: list[str] = []

    @contextmanager
    def _open(self) -> Iterator[Any]:
        def manifest(place: str) -> object:
            assert place == "guests/debian-13-x"
            return {"disk": {"sha256": self.stored}} if self.stored else None

        yield SimpleNamespace(manifest=manifest)

    def _get(self, image: str, arch: str) -> Any:
        assert arch == "amd64"
        self.asked_for.append(image)
        return SimpleNamespace(digest=self.named)

    def start_saved(self, saved: SavedVM) -> str:
        self.started = dict(vars(saved))
        return "a VM"


def guest(folder: Path, launcher: FakeLauncher, **how: bool) -> Any:
    return resume.guest(launcher, resume.read(folder, **how))  # type: ignore[arg-type]


def test_the_guest_image_is_found_by_its_digest(folder: Path) -> None:
    kept = guest(folder, FakeLauncher(stored=GUEST["digest"], named="e" * 64))
    assert (kept.key, kept.user, kept.digest) == ("debian-13-x", "debian", GUEST["digest"])
    for stored in (None, "e" * 64):
        assert guest(folder, FakeLauncher(stored=stored, named=GUEST["digest"])).digest == GUEST["digest"]


def test_a_different_guest_image_is_refused_with_both_digests(folder: Path) -> None:
    with pytest.raises(
        ImageError, match=r"needs debian-13 with sha256 d{64}, but the current debian-13 has sha256 e{64}\."
    ):
        guest(folder, FakeLauncher(stored="e" * 64, named="e" * 64))


def launched(folder: Path, **how: bool) -> tuple[FakeLauncher, dict[str, bytes]]:
    """Resume, and return the files that the container gets."""
    launcher = FakeLauncher(stored=GUEST["digest"], named="")
    assert resume.launch(launcher, resume.read(folder, **how)) == "a VM"  # type: ignore[arg-type, comparison-overlap]
    with tarfile.open(fileobj=io.BytesIO(b"".join(launcher.started["disk"]()))) as tar:
        files = {each.name: tar.extractfile(each) for each in tar}
        return launcher, {name: content.read() for name, content in files.items() if content}


def test_a_vm_resumes_with_disk_seed_keys_and_memory(folder: Path) -> None:
    launcher, files = launched(folder)
    assert files.keys() == {"local_image.qcow2", "resume/facts.json", "resume/state"}
    assert files["local_image.qcow2"] == OVERLAY * 1000
    assert files["resume/state"] == b"memory"
    assert json.loads(files["resume/facts.json"])["memory"] is True
    started = launcher.started
    assert started["environment"] == {"RESUME": "/mounted/resume"}
    assert (started["seed_iso"], started["user"]) == (b"seed", "debian")
    assert started["keys"].login.paramiko() == KEYS.login.paramiko()
    assert started["keys"].host.public == KEYS.host.public
    assert (started["spec"].name, started["spec"].ram, started["spec"].template) == ("web", 1024, False)


@pytest.mark.parametrize(("had", "gets"), [(6.0, 300.0), (900.0, 900.0)])
def test_a_short_boot_timeout_is_raised_to_the_default(had: float, gets: float, folder: Path) -> None:
    spec = json.loads((folder / "manifest.json").read_text())["spec"]
    change(folder, spec={**spec, "boot_timeout": had})
    assert resume.read(folder, disk_only=True).manifest.spec.boot_timeout == gets


def test_a_vm_without_memory_and_seed_boots_its_disk(folder: Path) -> None:
    change(folder, machine={"memory": False})
    (folder / "seed.iso").unlink()
    launcher, files = launched(folder)
    assert files.keys() == {"local_image.qcow2"}
    assert (launcher.started["environment"], launcher.started["seed_iso"]) == ({}, b"")


def test_disk_only_ignores_the_memory(folder: Path) -> None:
    launcher, files = launched(folder, disk_only=True)
    assert files.keys() == {"local_image.qcow2"}
    assert launcher.started["environment"] == {}


def test_unusable_memory_suggests_to_boot_the_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait() -> None:
        raise BadTemplate("web has ended: the memory in /mounted/resume does not fit: QEMU")

    folder = tmp_path / "a test"
    monkeypatch.setattr("pytest_virtainers.launching.build.build_launcher", lambda *_: nullcontext())
    machine = SimpleNamespace(wait_until_resumed=wait)
    vm = SimpleNamespace(access=SimpleNamespace(console_command="docker exec"), machine=machine)
    monkeypatch.setattr(resume, "read", lambda folder, **_: folder)
    monkeypatch.setattr(resume, "launch", lambda *_: vm)
    assert cli.main(["resume", str(folder)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == [
        f"virtainers: web has ended: the memory in {folder}/memory.state does not fit: QEMU",
        f"virtainers: to boot the disk without the memory: virtainers resume --disk-only '{folder}'",
    ]


def test_a_qemu_crash_is_retried_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, closed = [], []

    def wait() -> None:
        raise QEMUCrashed("web has ended: QEMU ended by itself (SIGABRT)")

    def launch(*_: object) -> SimpleNamespace:
        tries.append("launched")
        machine = SimpleNamespace(wait_until_resumed=wait, close=lambda: closed.append(len(tries)))
        return SimpleNamespace(access=SimpleNamespace(console_command=""), machine=machine)

    monkeypatch.setattr("pytest_virtainers.launching.build.build_launcher", lambda *_: nullcontext())
    monkeypatch.setattr(resume, "read", lambda folder, **_: folder)
    monkeypatch.setattr(resume, "launch", launch)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["resume", "--disk-only", str(tmp_path)]) == 1
    assert (tries, closed) == (["launched", "launched"], [1])
    said = capsys.readouterr().err
    assert said.count("QEMU ended by itself (SIGABRT)") == 2
    assert said.count("virtainers: QEMU crashed; starting it once more\n") == 1


def test_untrusted_memory_is_not_loaded(untrusted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", str(untrusted)]) == 1
    assert capsys.readouterr().err == (
        f"virtainers: {untrusted}/memory.state was not written by a run of this user on this machine, and QEMU does "
        "not check such a file. Boot the disk without the memory (--disk-only), or load it anyway (--trust)\n"
    )


def test_untrusted_evidence_resumes_with_trust_or_disk_only(untrusted: Path) -> None:
    assert "resume/state" in launched(untrusted, trust=True)[1]
    assert launched(untrusted, disk_only=True)[1].keys() == {"local_image.qcow2"}


def test_moved_evidence_is_still_trusted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert "resume/state" in launched(moved)[1]


@pytest.mark.parametrize("changes", [{"machine": {"memory": True}}, {"user": "root"}, {"seal": "0" * 64}, {"x": 1}])
def test_a_changed_manifest_is_not_trusted(changes: dict[str, Any], folder: Path) -> None:
    change(folder, **changes)
    with pytest.raises(SpecError, match="was not written by a run of this user on this machine"):
        resume.read(folder)


def test_changed_memory_is_not_loaded(folder: Path) -> None:
    (folder / "memory.state").write_bytes(b"m3mory")
    with pytest.raises(SpecError, match=r"/memory\.state has changed since a run of this user wrote it, and QEMU"):
        launched(folder)
    assert launched(folder, trust=True)[1]["resume/state"] == b"m3mory"


def test_memory_is_not_loaded_with_a_changed_disk(folder: Path) -> None:
    (folder / "overlay.qcow2").write_bytes(OVERLAY * 1001)
    with pytest.raises(SpecError, match=r"/memory\.state does not belong to this overlay\.qcow2: "):
        launched(folder)
    assert launched(folder, disk_only=True)[1]["local_image.qcow2"] == OVERLAY * 1001


@pytest.mark.parametrize("image", ["/etc/shadow", "https://203.0.113.1/x", "docker-image://evil", "no such name"])
def test_untrusted_evidence_cannot_choose_the_guest_image(image: str, untrusted: Path) -> None:
    spec = json.loads((untrusted / "manifest.json").read_text())["spec"]
    change(untrusted, spec={**spec, "image": image})
    launcher = FakeLauncher(stored=None, named=GUEST["digest"])
    with pytest.raises(
        SpecError, match=rf"/manifest\.json: spec\.image='{image}': the guest image is not in the store"
    ):
        guest(untrusted, launcher, disk_only=True)
    assert launcher.asked_for == []
    assert guest(untrusted, launcher, disk_only=True, trust=True).digest == GUEST["digest"]
    assert launcher.asked_for == [image]
    in_store = FakeLauncher(stored=GUEST["digest"], named="")
    assert guest(untrusted, in_store, disk_only=True).key == GUEST["key"]


@pytest.mark.parametrize(
    ("made", "fact"),
    [
        (b"KDMV", "is not qcow2"),
        (head(incompatible=4), "keeps its data in another file"),
        (head(encryption=1), "is encrypted"),
    ],
)
def test_a_disk_that_refers_to_other_files_is_refused(
    made: bytes, fact: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "overlay.qcow2").write_bytes(made)
    for words in (["--export", str(folder / "flat")], ["--disk-only"], ["--trust"]):
        assert cli.main(["resume", str(folder), *words]) == 1
        assert capsys.readouterr().err == f"virtainers: {folder}/overlay.qcow2 {fact}\n"


@pytest.mark.parametrize("name", ["manifest.json", "overlay.qcow2", "memory.state", "ssh_key", "seed.iso"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_regular_files_of_the_folder_are_read(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    path = folder / name
    path.rename(tmp_path / "original")
    if kind == "link":
        path.symlink_to(tmp_path / "original")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(SpecError, match=r"symbolic links are not followed|not a regular file") as caught:
        launched(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_huge_sparse_file_is_refused(folder: Path) -> None:
    os.truncate(folder / "overlay.qcow2", 10 * 2**40)
    with pytest.raises(
        SpecError, match=rf"/overlay\.qcow2: it has {10 * 2**40} bytes, of which \d+ are allocated; at most"
    ):
        launched(folder, disk_only=True)


def test_an_invalid_login_key_is_refused(folder: Path) -> None:
    (folder / "ssh_key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nProxyCommand id\n")
    with pytest.raises(
        SpecError, match=r"/ssh_key: expected an ed25519 private key in OpenSSH format without passphrase"
    ):
        launched(folder)


def test_the_key_of_the_seals_is_private_and_replaced_if_it_was_not(folder: Path, cache: Path) -> None:
    key = cache / "evidence.key"
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
    before = key.read_bytes()
    resume.read(folder)
    assert key.read_bytes() == before
    key.chmod(0o644)
    with pytest.raises(SpecError, match="was not written by a run of this user"):
        resume.read(folder)
    assert key.read_bytes() != before
    assert key.stat().st_mode & 0o777 == 0o600


def test_evidence_without_a_place_for_the_key_has_no_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    collect.collect(machine(), tmp_path, memory=True, about={"guest": GUEST})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "seal" not in manifest
    assert manifest["missing"]["seal"].startswith("SpecError: cannot create locks: ")


def test_a_flat_disk_needs_only_the_overlay_and_the_guest_image(folder: Path, tmp_path: Path) -> None:
    calls: list[Any] = []
    launcher = FakeLauncher(stored=GUEST["digest"], named="")
    flatten = lambda *arguments: calls.append(arguments)  # noqa: E731
    resume.export(
        SimpleNamespace(store=launcher.store, disks=SimpleNamespace(flatten=flatten)),  # type: ignore[arg-type]
        resume.read(folder, disk_only=True),
        tmp_path / "flat",
    )
    ((overlay, name, places, target),) = calls
    assert (name, places) == (f"{folder}/overlay.qcow2", ("guests/debian-13-x",))
    assert target == tmp_path / "flat"
    with tarfile.open(fileobj=io.BytesIO(b"".join(overlay))) as tar:
        assert tar.getnames() == ["local_image.qcow2"]
