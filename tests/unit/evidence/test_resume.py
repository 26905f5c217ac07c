"""Folders of evidence, read again: what may be wrong with them, and what a container is given of them."""

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
    """This user's cache, with the key of the seals."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "pytest-virtainers"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Evidence with memory, as it is written."""
    vm = machine()
    vm.name = "db"
    vm.container.files["overlay.qcow2"] = OVERLAY * 1000
    collect.collect(vm, tmp_path, memory=True, about={"guest": GUEST})
    return tmp_path


@pytest.fixture
def strange(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, at another user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("another's cache")))
    return folder


def change(folder: Path, **facts: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_folder_without_a_manifest_is_none_of_evidence(tmp_path: Path) -> None:
    for content, fact in (
        (None, "there is no such file. Name the folder of one VM"),
        ("no JSON", "it is no manifest of evidence: Expecting"),
    ):
        if content:
            (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(SpecError, match=rf"^{tmp_path}/manifest\.json: {fact}"):
            resume.read(tmp_path)


def test_evidence_of_another_version_is_refused(folder: Path) -> None:
    change(folder, format=99)
    with pytest.raises(SpecError, match=r"/manifest\.json: format=99: another version wrote it; this one reads 1$"):
        resume.read(folder)


def test_why_there_is_no_disk_is_told(folder: Path) -> None:
    (folder / "overlay.qcow2").unlink()
    with pytest.raises(SpecError, match=r"has no disk to start from: it is not there$"):
        resume.read(folder)
    change(folder, missing={"overlay.qcow2": "EngineError: no room\x1b[2J"})
    with pytest.raises(SpecError, match=r"has no disk to start from: 'EngineError: no room\\x1b\[2J'$"):
        resume.read(folder)


def test_the_command_says_it_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_virtainers.launching.build.build_launcher", lambda *_: nullcontext())
    assert cli.main(["resume", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"virtainers: {tmp_path}/manifest.json: there is no such file. "
        "Name the folder of one VM: virtainer-artifacts/TEST/VM\n"
    )


class FakeLauncher:
    """Has these guest images, by what images are called and in the store; notes what it is to start."""

    def __init__(self, *, stored: str | None, called_so: str) -> None:
        self.stored, self.called_so = stored, called_so
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
        return SimpleNamespace(digest=self.called_so)

    def start_saved(self, saved: SavedVM) -> str:
        self.started = dict(vars(saved))
        return "a VM"


def guest(folder: Path, launcher: FakeLauncher, **how: bool) -> Any:
    return resume.guest(launcher, resume.read(folder, **how))  # type: ignore[arg-type]


def test_the_very_guest_image_is_found_by_its_digest_wherever_it_is(folder: Path) -> None:
    kept = guest(folder, FakeLauncher(stored=GUEST["digest"], called_so="e" * 64))
    assert (kept.key, kept.user, kept.digest) == ("debian-13-x", "debian", GUEST["digest"])
    for stored in (None, "e" * 64):
        assert guest(folder, FakeLauncher(stored=stored, called_so=GUEST["digest"])).digest == GUEST["digest"]


def test_another_guest_image_is_refused_with_both_digests(folder: Path) -> None:
    with pytest.raises(
        ImageError, match=r"on debian-13 with sha256 d{64}, and what is called so now has sha256 e{64}:"
    ):
        guest(folder, FakeLauncher(stored="e" * 64, called_so="e" * 64))


def launched(folder: Path, **how: bool) -> tuple[FakeLauncher, dict[str, bytes]]:
    """Resume, and unpack what the container's folder was given."""
    launcher = FakeLauncher(stored=GUEST["digest"], called_so="")
    assert resume.launch(launcher, resume.read(folder, **how)) == "a VM"  # type: ignore[arg-type, comparison-overlap]
    with tarfile.open(fileobj=io.BytesIO(b"".join(launcher.started["disk"]()))) as tar:
        files = {each.name: tar.extractfile(each) for each in tar}
        return launcher, {name: content.read() for name, content in files.items() if content}


def test_a_machine_goes_on_with_its_disk_seed_keys_and_memory(folder: Path) -> None:
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
def test_a_machine_that_had_too_little_time_to_boot_gets_the_usual(had: float, gets: float, folder: Path) -> None:
    spec = json.loads((folder / "manifest.json").read_text())["spec"]
    change(folder, spec={**spec, "boot_timeout": had})
    assert resume.read(folder, disk_only=True).manifest.spec.boot_timeout == gets


def test_without_memory_or_seed_it_boots_from_its_disk(folder: Path) -> None:
    change(folder, machine={"memory": False})
    (folder / "seed.iso").unlink()
    launcher, files = launched(folder)
    assert files.keys() == {"local_image.qcow2"}
    assert (launcher.started["environment"], launcher.started["seed_iso"]) == ({}, b"")


def test_its_disk_boots_without_its_memory_on_request(folder: Path) -> None:
    launcher, files = launched(folder, disk_only=True)
    assert files.keys() == {"local_image.qcow2"}
    assert launcher.started["environment"] == {}


def test_memory_that_does_not_fit_does_not_cost_the_disk(
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
        f"virtainers: to boot its disk without its memory: virtainers resume --disk-only '{folder}'",
    ]


def test_where_qemu_itself_crashes_it_is_started_anew_once(
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
    assert said.count("virtainers: QEMU has crashed: starting it anew, once\n") == 1


def test_memory_of_another_user_or_machine_is_not_loaded(strange: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", str(strange)]) == 1
    assert capsys.readouterr().err == (
        f"virtainers: {strange}/memory.state was not written by a run of this user on this machine, and QEMU loads "
        "whatever such a file says: --disk-only boots the disk without the memory, --trust loads it\n"
    )


def test_memory_of_another_user_is_loaded_if_trusted_and_its_disk_boots_without(strange: Path) -> None:
    assert "resume/state" in launched(strange, trust=True)[1]
    assert launched(strange, disk_only=True)[1].keys() == {"local_image.qcow2"}


def test_evidence_that_was_moved_is_still_this_users(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert "resume/state" in launched(moved)[1]


@pytest.mark.parametrize("changes", [{"machine": {"memory": True}}, {"user": "root"}, {"seal": "0" * 64}, {"x": 1}])
def test_a_manifest_that_was_changed_is_a_strangers(changes: dict[str, Any], folder: Path) -> None:
    change(folder, **changes)
    with pytest.raises(SpecError, match="was not written by a run of this user on this machine"):
        resume.read(folder)


def test_memory_that_was_changed_does_not_start(folder: Path) -> None:
    (folder / "memory.state").write_bytes(b"m3mory")
    with pytest.raises(SpecError, match=r"/memory\.state has changed since a run of this user wrote it, and QEMU"):
        launched(folder)
    assert launched(folder, trust=True)[1]["resume/state"] == b"m3mory"


def test_memory_does_not_start_on_a_disk_that_was_changed(folder: Path) -> None:
    (folder / "overlay.qcow2").write_bytes(OVERLAY * 1001)
    with pytest.raises(SpecError, match=r"/memory\.state is of a moment at which overlay\.qcow2 was another: "):
        launched(folder)
    assert launched(folder, disk_only=True)[1]["local_image.qcow2"] == OVERLAY * 1001


@pytest.mark.parametrize("image", ["/etc/shadow", "https://203.0.113.1/x", "docker-image://evil", "no such name"])
def test_a_stranger_does_not_say_what_is_read_or_fetched(image: str, strange: Path) -> None:
    spec = json.loads((strange / "manifest.json").read_text())["spec"]
    change(strange, spec={**spec, "image": image})
    launcher = FakeLauncher(stored=None, called_so=GUEST["digest"])
    with pytest.raises(
        SpecError, match=rf"/manifest\.json: spec\.image='{image}': the guest image is not in the store"
    ):
        guest(strange, launcher, disk_only=True)
    assert launcher.asked_for == []
    assert guest(strange, launcher, disk_only=True, trust=True).digest == GUEST["digest"]
    assert launcher.asked_for == [image]
    in_store = FakeLauncher(stored=GUEST["digest"], called_so="")
    assert guest(strange, in_store, disk_only=True).key == GUEST["key"]


@pytest.mark.parametrize(
    ("made", "fact"),
    [
        (b"KDMV", "is not qcow2"),
        (head(incompatible=4), "keeps its data in another file"),
        (head(encryption=1), "is encrypted"),
    ],
)
def test_a_disk_that_leads_to_other_files_is_named_before_anything_is_started(
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
    with pytest.raises(SpecError, match=r"which is not followed|is no regular file") as caught:
        launched(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_nearly_all_hole_is_not_sent(folder: Path) -> None:
    os.truncate(folder / "overlay.qcow2", 10 * 2**40)
    with pytest.raises(
        SpecError, match=rf"/overlay\.qcow2: it has {10 * 2**40} bytes, of which \d+ are there: at most"
    ):
        launched(folder, disk_only=True)


def test_a_key_that_is_none_is_refused(folder: Path) -> None:
    (folder / "ssh_key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nProxyCommand id\n")
    with pytest.raises(SpecError, match=r"/ssh_key: an ed25519 private key without a passphrase is expected"):
        launched(folder)


def test_the_key_of_the_seals_is_private_and_made_anew_when_others_could_read_it(folder: Path, cache: Path) -> None:
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


def test_evidence_is_kept_without_a_seal_where_there_is_no_place_for_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    collect.collect(machine(), tmp_path, memory=True, about={"guest": GUEST})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "seal" not in manifest
    assert manifest["missing"]["seal"].startswith("SpecError: the locks against other processes")


def test_a_flat_disk_is_made_of_the_overlay_and_its_guest_image_alone(folder: Path, tmp_path: Path) -> None:
    asked: list[Any] = []
    launcher = FakeLauncher(stored=GUEST["digest"], called_so="")
    flatten = lambda *arguments: asked.append(arguments)  # noqa: E731
    resume.export(
        SimpleNamespace(store=launcher.store, disks=SimpleNamespace(flatten=flatten)),  # type: ignore[arg-type]
        resume.read(folder, disk_only=True),
        tmp_path / "flat",
    )
    ((overlay, name, places, target),) = asked
    assert (name, places) == (f"{folder}/overlay.qcow2", ("guests/debian-13-x",))
    assert target == tmp_path / "flat"
    with tarfile.open(fileobj=io.BytesIO(b"".join(overlay))) as tar:
        assert tar.getnames() == ["local_image.qcow2"]
