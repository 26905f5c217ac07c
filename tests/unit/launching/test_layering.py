"""The shapes that are made from their plain template, and what is done in the guest for that."""

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, check, merge
from pytest_virtainers.guests.images import GuestImage
from pytest_virtainers.launching import cloud_init, layering
from pytest_virtainers.launching.templates import Template, Templates
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.support.progress import Progress
from pytest_virtainers.vm import identity, provisioning, saving

if TYPE_CHECKING:
    from collections.abc import Iterator

GUEST = GuestImage("debian-13-abc", "debian", "digest")


def spec(**arguments: Any) -> Spec:
    return merge(resolve([]).shape, check(arguments, "here"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"prepare": len},
        {"packages": ["hello"]},
        {"run_commands": ["true"]},
        {"authorized_keys": ["ssh-ed25519 AAAA"]},
        {"files": {"/srv/a": "b", "/etc/motd": "c", "/etc/systemd/system/app.service": "d"}},
        {"packages": ["hello"], "user_data": {"timezone": "UTC", "users": ["default"]}},
        {"prepare": len, "user_data": {"runcmd": ["true"]}, "image": "/own.qcow2"},
        {"packages": ["hello"], "run_commands": ["true"], "image": "/own.qcow2"},
    ],
)
def test_additions_to_a_running_vm_need_no_boot(arguments: dict[str, Any]) -> None:
    assert layering.is_layer(spec(**arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ram": "2G", "user": "alice", "user_data": {"timezone": "UTC"}},
        {"packages": ["hello"], "user_data": {"runcmd": ["hello"]}},
        {"run_commands": ["true"], "user_data": {"power_state": {"mode": "poweroff"}}},
        {"files": {"/etc/ssh/sshd_config.d/own.conf": "Port 2222"}},
        {"files": {"/srv/a": "b", "/etc/x/..//skel/.profile": ""}},
        {"files": {"/srv/a": "b"}, "image": "/own.qcow2"},
    ],
)
def test_shapes_that_depend_on_the_order_of_steps_are_booted(arguments: dict[str, Any]) -> None:
    assert not layering.is_layer(spec(**arguments))


def test_shapes_that_differ_in_additions_have_one_plain_shape() -> None:
    several: list[dict[str, Any]] = [{}, {"packages": ["a"]}, {"files": {"/a": ""}}, {"prepare": len}]
    several += [{"run_commands": ["b"]}, {"authorized_keys": ["ssh-ed25519 AAAA"]}]
    assert {layering.plain(spec(ram="2G", **each)) == spec(ram="2G") for each in several} == {True}


class FakeOpenStore:
    """The part of a store that making templates uses."""

    def __init__(self) -> None:
        self.manifests: dict[str, Any] = {}
        self.emptied: list[str] = []
        self.container = SimpleNamespace(put=lambda folder, files: self.manifests.update({folder: files}))

    def manifest(self, place: str) -> Any:
        files = self.manifests.get(place)
        return json.loads(files["manifest.json"]) if files else None

    recall = manifest

    @contextmanager
    def new(self, place: str) -> "Iterator[str]":
        yield place

    def shell(self, _script: str, folder: str) -> None:
        self.emptied.append(folder)


class Maker:
    """Records how each VM was started; `lack` is the reason why none can be restored."""

    def __init__(self, lack: str = "") -> None:
        self.lack = lack
        self.made: list[tuple[str, ...]] = []

    def boot(self, spec: Spec, _keys: Keys, _folder: str) -> Any:
        self.made.append(("boot", *spec.packages))
        return SimpleNamespace(machine=SimpleNamespace(close=lambda: None))

    def restore(self, spec: Spec, keys: Keys, _folder: str, plain: Template) -> Any:
        assert keys != plain.keys, "a template has its own keys"
        self.made.append(("restore", *spec.packages))
        if self.lack:
            raise layering.NotLayered(self.lack)
        return SimpleNamespace(machine=SimpleNamespace(close=lambda: None))


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeOpenStore:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(saving, "save", lambda *_: None)
    return FakeOpenStore()


def templates(opened: FakeOpenStore, said: list[str]) -> Templates:
    @contextmanager
    def store() -> "Iterator[Any]":
        yield opened

    return Templates(
        cast("Any", store), holds=SharedLocks(), runtime_id=lambda: "r", progress=Progress(said.append, live=False)
    )


def test_the_plain_template_is_booted_once_and_all_layers_are_made_from_it(opened: FakeOpenStore) -> None:
    maker, said = Maker(), list[str]()
    found = templates(opened, said)
    layers = [found.ensure(spec(packages=[name]), GUEST, cast("Any", maker)) for name in ("a", "b", "a")]
    assert maker.made == [("boot",), ("restore", "a"), ("restore", "b")]
    plain = found.ensure(spec(), GUEST, cast("Any", maker))
    assert {each.origin for each in layers} == {plain.place}
    assert found.made_from(plain.place) == layers[:2]
    again = templates(opened, said)
    assert again.ensure(spec(packages=["a"]), GUEST, cast("Any", maker)) == layers[0]
    assert len(maker.made) == 3


def test_a_layer_that_cannot_be_restored_is_booted_in_an_empty_folder(opened: FakeOpenStore) -> None:
    maker, said = Maker("no cloud-init"), list[str]()
    made = templates(opened, said).ensure(spec(packages=["a"]), GUEST, cast("Any", maker))
    assert maker.made == [("boot",), ("restore", "a"), ("boot", "a")]
    assert (made.origin, opened.emptied) == ("", [made.place])
    assert said == ["virtainers: a VM of debian-13 is booted for its template: no cloud-init\n"]


def test_an_instance_is_known_by_its_keys() -> None:
    keys = Keys.generate()
    assert cloud_init.instance_id(keys) == cloud_init.instance_id(keys) != cloud_init.instance_id(Keys.generate())


def run(script: str, *words: str, **more: Any) -> str:
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        ["sh", "-c", script, *words], check=True, capture_output=True, **more
    )
    return done.stdout.decode()


def test_files_are_written_as_cloud_init_does(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("a longer text")
    (tmp_path / "there").chmod(0o600)
    (tmp_path / "link").symlink_to("target")
    wanted = {"new/sub folder/it's": b"\xff\0x", "there": b"short", "link": b"through", "empty": b""}
    script = provisioning.script(spec(files={f"{tmp_path}/{name}": content for name, content in wanted.items()}))
    run(script.replace("chown root:root", "true"))
    assert {name: (tmp_path / name).read_bytes() for name in wanted} == wanted
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in wanted} == {0o644}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "link").is_symlink()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(subprocess.CalledProcessError):
        run(provisioning.script(spec(files={f"{tmp_path}/file/below": b"x", f"{tmp_path}/next": b"y"})))


def test_commands_are_texts_for_the_shell_or_lists_of_words() -> None:
    script = provisioning.shell_script(["word=a; echo $((6*7))", ["echo", "it's", "$word"], "echo $word"])
    assert script.startswith("#!/bin/sh\n")
    assert run(script) == "42\nit's $word\na\n"


def test_cloud_init_runs_the_requested_steps_only() -> None:
    wanted = spec(packages=["hello", "ed"], run_commands=["true", ["echo", "x"]])
    config = yaml.safe_load(provisioning.config(wanted))
    assert config.pop("cloud_final_modules") == [
        ["package_update_upgrade_install", "always"],
        ["runcmd", "always"],
        ["scripts_user", "always"],
    ]
    assert config == {"packages": ["hello", "ed"], "runcmd": ["true", ["echo", "x"]]}
    assert "runcmd" not in yaml.safe_load(provisioning.config(spec(packages=["hello"])))


@pytest.mark.parametrize("arguments", [{"packages": ["hello"]}, {"run_commands": ["true"]}])
def test_a_guest_without_cloud_init_is_unchanged(tmp_path: Path, arguments: dict[str, Any]) -> None:
    script = provisioning.script(spec(files={f"{tmp_path}/file": b"x"}, **arguments))
    script = script.replace("[ -d /run/cloud-init ]", f"[ -d {tmp_path}/cloud-init ]")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(script)
    assert caught.value.returncode == provisioning.LACKS
    assert list(tmp_path.iterdir()) == []


def test_the_login_key_is_replaced_and_others_stay(tmp_path: Path) -> None:
    file, former, following = tmp_path / "keys", Keys.generate().login.public, Keys.generate().login.public
    file.write_text(f"# mine\nno-pty {former} comment\nssh-ed25519 OTHER\n")
    script = identity.ADMIT.replace("~$LOGIN/.ssh/authorized_keys", str(file))
    env = {"FORMER": former, "NEXT": following, "MORE": "ssh-ed25519 MORE\n"}
    run(script, env=env)
    assert file.read_text() == f"# mine\nno-pty {following} comment\nssh-ed25519 OTHER\nssh-ed25519 MORE\n"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(script, env=env)
    assert caught.value.returncode == identity.LACKS
