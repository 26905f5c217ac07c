"""Untrusted evidence and `virtainers resume`: real folders, tampered with as an attacker would.

The attacker tries to get a shell line into the store's helper, an option of ssh, a variable of the container, or
another file of the store. Each refusal is one line.
"""

import contextlib
import json
import os
import secrets
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_virtainers import VM
from pytest_virtainers.config.settings import Settings
from pytest_virtainers.config.spec import check, merge
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.plan import Plan
from pytest_virtainers.errors import BadTemplate, ImageError, VMGone
from pytest_virtainers.evidence import collect
from pytest_virtainers.evidence import resume as evidence_reader
from pytest_virtainers.evidence.resume import MEMORY
from pytest_virtainers.launching.container_plan import Start
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.launching.templates import Template
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.store.access import Access
from tests.vm.shapes import SMALL

WORDS = "what only this disk has"


@pytest.fixture(scope="module")
def vm(launcher: Launcher, settings: Settings) -> Iterator[VM]:
    vm = launcher.launch(merge(settings.shape, check({**SMALL, "name": "web"}, "here")))
    yield vm
    launcher.discard(vm)


@pytest.fixture(scope="module")
def original(vm: VM, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect evidence with memory, written by this user on this machine."""
    folder = tmp_path_factory.mktemp("evidence")
    vm.run(f"echo {WORDS} >mark; sync; echo in memory >/dev/shm/file")
    collect.collect(vm, folder, memory=True, about=launcher.facts(vm))
    assert json.loads((folder / "manifest.json").read_text())["missing"] == {}
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """Return a copy to tamper with; its large files are the original's."""
    return Path(shutil.copytree(original, tmp_path / "evidence", copy_function=copy))


def copy(source: str, target: str) -> None:
    if Path(source).name in {"overlay.qcow2", "memory.state"}:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def change(folder: Path, **fields: dict[str, object]) -> None:
    """Change fields of the manifest, or nested fields."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, value in fields.items():
        manifest[name] = {**manifest[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(manifest))


def resume(folder: Path, *words: str, cache: Path | None = None) -> tuple[int, str, str]:
    """Resume it, with another user's cache if given; return exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest_virtainers.cli", "resume", str(folder), *words],
        env={**os.environ, **({"XDG_CACHE_HOME": str(cache)} if cache else {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    return done.returncode, done.stdout, done.stderr


def refused(folder: Path, *words: str, **how: Any) -> str:
    """Resume it, which fails; return the one line with the reason, without the folder."""
    code, out, said = resume(folder, *words, **how)
    assert (code, out) == (1, ""), said
    *_, last = lines = said.splitlines()
    assert not any("Traceback" in line for line in lines)
    assert last.startswith("virtainers: ")
    return last.removeprefix("virtainers: ").replace(f"{folder}/", "")


def test_shell_words_in_the_key_of_a_guest_do_not_run(folder: Path, launcher: Launcher, tmp_path: Path) -> None:
    digest = json.loads((folder / "manifest.json").read_text())["guest"]["digest"]
    manifest, mark = json.dumps({"disk": {"sha256": digest}}), f"ran-{secrets.token_hex(4)}"
    change(folder, guest={"key": f"x; touch /store/{mark}; echo '{manifest}' #"})
    target = tmp_path / "flat"
    for words in (["--export", str(target)], ["--disk-only", "--", "true"], ["--trust", "--", "true"]):
        said = refused(folder, *words)
        assert said.startswith(f"manifest.json: guest.key='x; touch /store/{mark}")
        assert said.endswith("a name of letters, digits, ., _ and - is expected, starting with a letter or digit")
    assert not target.exists()
    with launcher.store.open() as store:
        assert mark not in store.shell("ls -A /store").split()


def test_a_user_that_looks_like_an_ssh_option_is_refused(folder: Path, tmp_path: Path) -> None:
    change(folder, user=f"-oProxyCommand=touch {tmp_path}/ran;#")  # type: ignore[arg-type]
    said = refused(folder, "--disk-only", "--", "true")
    assert said.startswith("manifest.json: user='-oProxyCommand=touch ")
    assert said.endswith("a login name of a-z, 0-9, _ and - is needed, starting with a letter or _")
    assert not (tmp_path / "ran").exists()


def test_a_library_among_the_variables_is_not_loaded(folder: Path) -> None:
    change(folder, spec={"env": {"LD_PRELOAD": f"{MEMORY}/state"}})
    for words in ([], ["--trust"]):
        said = refused(folder, *words, "--", "true")
        assert said == (
            f"manifest.json: spec.env={{'LD_PRELOAD': '{MEMORY}/state'}}: 'LD_PRELOAD' is none of CIDR, DISK_CACHE, "
            "OS_VARIANT, SHUTDOWN_TIMEOUT; for others there are arguments"
        )


def test_memory_of_other_users_is_loaded_only_on_request(folder: Path, tmp_path: Path) -> None:
    said = refused(folder, "--", "true", cache=tmp_path)
    assert said.startswith("memory.state was not written by a run of this user on this machine, and QEMU does not ")
    look = "cat mark /dev/shm/file || true"
    _, out, said = resume(folder, "--trust", "--", look, cache=tmp_path)
    assert out == f"{WORDS}\nin memory\n", said


def test_own_memory_is_loaded_unless_it_was_changed(folder: Path) -> None:
    _, out, said = resume(folder, "--", "cat mark /dev/shm/file || true")
    assert out == f"{WORDS}\nin memory\n", said
    state = folder / "memory.state"
    content = state.read_bytes()
    state.unlink()
    state.write_bytes(content[:-1] + b"x")
    assert refused(folder, "--", "true").startswith("memory.state has changed since a run of this user wrote it")


def with_data_in(folder: Path, name: str) -> None:
    """Change the header of a folder's disk so that its data is in the file `name` of the container."""
    path = folder / "overlay.qcow2"
    content = bytearray(path.read_bytes())
    content[72:80] = struct.pack(">Q", struct.unpack_from(">Q", content, 72)[0] | 1 << 2)
    length = struct.unpack_from(">I", content, 100)[0]
    there = name.encode()
    more = struct.pack(">II", 0x44415441, len(there)) + there.ljust(-(-len(there) // 8) * 8, b"\0") + bytes(8)
    content[length : length + len(more)] = more
    path.unlink()
    path.write_bytes(content)


def test_a_disk_whose_data_is_a_file_of_the_store_is_not_read(
    folder: Path, launcher: Launcher, tmp_path: Path
) -> None:
    with launcher.store.open() as store:
        secret = store.shell("ls -1 /store/templates/*/manifest.json | head -n 1").strip()
    assert secret
    with_data_in(folder, secret)
    target = tmp_path / "flat"
    for options in (["--export", str(target)], ["--disk-only"], ["--trust"]):
        assert refused(folder, *options) == "overlay.qcow2 keeps its data in another file"
    assert not [each.name for each in tmp_path.iterdir() if each != folder]


def test_the_header_of_a_disk_is_checked_again_before_its_use(
    folder: Path, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be replaced after the first check."""
    with_data_in(folder, "/store/secret")
    monkeypatch.setattr(evidence_reader, "_check_header", lambda _folder: None)
    hostile = evidence_reader.read(folder, disk_only=True)
    with pytest.raises(ImageError, match=rf"^{folder}/overlay\.qcow2 keeps its data in another file$"):
        evidence_reader.export(launcher, hostile, tmp_path / "flat")
    vm = evidence_reader.launch(launcher, hostile)
    try:
        with pytest.raises(
            VMGone, match=r"the overlay /mounted/local_image\.qcow2 keeps its data in another file: remove"
        ):
            vm.machine.wait_until_resumed()
    finally:
        launcher.discard(vm)


def test_a_guest_image_named_by_untrusted_evidence_is_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.img").write_bytes(bytes(510) + b"\x55\xaa")
    change(folder, spec={"image": str(tmp_path / "secret.img")}, guest={"key": "gone", "digest": "0" * 64})
    said = refused(folder, "--disk-only", "--", "true")
    assert said.startswith("manifest.json: spec.image='/")
    assert ": the guest image is not in the store, and untrusted evidence cannot make this machine read or" in said


def test_evidence_of_other_users_can_be_exported(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "flat"
    code, out, said = resume(folder, "--export", str(target), cache=tmp_path / "cache")
    assert (code, out) == (0, f"{target}: a self-contained disk\n"), said
    content = target.read_bytes()
    assert struct.unpack_from(">4sIQ", content) == (b"QFI\xfb", 3, 0), "on nothing else"
    assert WORDS.encode() in content
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_vm_sees_only_its_own_places_of_the_store(vm: VM, launcher: Launcher) -> None:
    template = vm.machine.container.environment["TEMPLATE"]
    code, listed = vm.machine.container.run(["find", "/store", "-mindepth", "1", "-maxdepth", "2", "-type", "d"])
    assert code == 0
    (guest,) = {each for each in listed.decode().split() if each.startswith("/store/guests/")}
    assert set(listed.decode().split()) == {"/store/guests", "/store/templates", template, guest}
    with launcher.store.open() as store:
        others = set(store.shell("ls -1d /store/*/*").split()) - {template, guest}
        if not others:
            with store.scratch() as scratch:
                others = {scratch}
    for other in others:
        assert vm.machine.container.run(["cat", f"{other}/manifest.json"])[0] != 0
    for place in (template, guest):
        code, said = vm.machine.container.run(["touch", f"{place}/new"])
        assert code != 0
        assert b"Read-only file system" in said


def test_a_detached_vm_keeps_the_volume_in_use_without_seeing_it(
    vm: VM, launcher: Launcher, settings: Settings, engine: DockerEngine
) -> None:
    """Otherwise the engine's `volume prune` would remove the disk that its overlay is made on."""
    if settings.store.startswith("/"):
        pytest.skip("the store is no volume")
    places = [vm.machine.container.environment["TEMPLATE"].removeprefix("/store/")]
    binds = Access(engine, settings.store, launcher.store.open).binds(places, lasting=True)
    plan = Plan("virtainers-lasting", "helper", launcher.runtime_image.reference(), entrypoint=("cat",), binds=binds)
    with contextlib.closing(engine.create(plan, secrets.token_hex(4))) as container:
        container.start()
        mounts = engine.api.inspect_container(container.id)["Mounts"]
        assert settings.store in {each.get("Name") for each in mounts}
        code, seen = container.run(["find", "/kept", "/usr/lib/virtainer/kept/", "-mindepth", "1", "-printf", "%P\n"])
        assert code == 0
        assert not {"guests", "templates"} & set(seen.decode().split())
        code, own = container.run(["find", f"/store/{places[0]}", "-mindepth", "1", "-printf", "%P\n"])
        assert set(seen.decode().split()) == set(own.decode().split())


def test_a_vm_that_becomes_a_template_writes_only_to_its_own_folder(launcher: Launcher, settings: Settings) -> None:
    guest = launcher.guests.get(settings.shape["image"])
    spec = merge(settings.shape, check({**SMALL, "name": "vm"}, "here"))
    with launcher.store.open() as store, store.scratch() as scratch, store.scratch() as other:
        start, variables = Start(save_into=scratch), guest.variables("auto")
        setting = launcher.networks.setting(spec.first_network)
        plan = launcher.containers.planner.plan(
            spec, "x", (guest.place,), variables, "", start=start, setting=setting
        )
        assert [(each.target, each.writable) for each in plan.binds] == [
            (f"/store/{guest.place}", False),
            (scratch, True),
        ]
        container = launcher.containers.start(spec, (guest.place,), {**variables, "ACCEL": "none"}, "", start=start)
        try:
            assert container.wait(120), "it ends at once, as its setting is wrong"
        finally:
            container.close()
        assert store.shell('ls -A "$1" "$2"', scratch, other)


def test_a_template_removed_by_another_process_is_bad(launcher: Launcher, settings: Settings) -> None:
    """So it is made again. Docker does not mount missing directories; Podman creates them empty."""
    guest = launcher.guests.get(settings.shape["image"])
    spec = merge(settings.shape, check({**SMALL, "name": "web"}, "here"))
    template = Template("gone", guest.place, guest.user, Keys.generate())
    with pytest.raises(BadTemplate, match=r"templates/gone is n"):
        launcher.bring_up.clone(spec, guest, template, "")
    with launcher.store.open() as store:
        assert store.manifest(template.place) is None
        with store.scratch():  # the next process that makes something removes it
            assert "gone" not in store.shell("ls -A /store/templates").split()
