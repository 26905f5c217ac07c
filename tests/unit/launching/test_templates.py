"""The arguments that shape a template, and so are in its key."""

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from virtainer import clone_agent, protocol

from pytest_virtainers.config.arguments import ARGUMENTS
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import check, merge
from pytest_virtainers.guests.images import GuestImage
from pytest_virtainers.launching import cloud_init, layering
from pytest_virtainers.launching.templates import Template, Templates, _load, _manifest
from pytest_virtainers.ssh import resumable
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm import clone_helper, identity

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_virtainers.store.volume import OpenStore

GUEST = GuestImage("debian-13-abc", "debian", "digest")


def no_store() -> "AbstractContextManager[OpenStore]":
    raise AssertionError("a key needs none")


def key(guest: GuestImage = GUEST, runtime: str = "runtime:1", **arguments: Any) -> str:
    spec = merge(resolve([]).shape, check(arguments, "here"))
    templates = Templates(no_store, holds=SharedLocks(), runtime_id=lambda: runtime, progress=SILENT)
    return templates.key(spec, guest)


def test_firmware_counts_alike_from_spec_and_image() -> None:
    guest = replace(GUEST, firmware="uefi")
    assert key(guest) == key(guest, firmware="uefi") != key(guest, firmware="bios")


def test_another_architecture_needs_another_template() -> None:
    assert key(replace(GUEST, arch="arm64")) != key(GUEST)


OTHERS: dict[str, Any] = {
    "name": "web",
    "ram": "2G",
    "cpus": 2,
    "disk": "11G",
    "user": "alice",
    "user_data": {"timezone": "UTC"},
    "meta_data": {"tier": "web"},
    "packages": ["hello"],
    "run_commands": ["true"],
    "files": {"/a": "b"},
    "authorized_keys": ["ssh-ed25519 AAAA me"],
    "prepare": len,
    "hostname": "web",
    "network": "lab",
    "ip": 11,
    "nics": ["lab"],
    "internet": False,
    "scope": "module",
    "reset": "snapshot",
    "template": False,
    "identity": "fresh",
    "accel": "tcg",
    "firmware": "uefi",
    "env": {"CIDR": "192.168.7"},
    "boot_timeout": 5,
    "provision_timeout": 5,
}
"""A value other than the default, for each argument; instead of `image` and `arch`, the guest image counts."""


@pytest.mark.parametrize("name", [*OTHERS])
def test_only_arguments_that_shape_a_template_are_in_its_key(name: str) -> None:
    assert (key(**{name: OTHERS[name]}) != key()) == ARGUMENTS[name].shapes_template
    assert {*OTHERS} == ARGUMENTS.keys() - {"image", "arch"}


def test_layered_arguments_are_not_in_the_key_of_the_plain_template() -> None:
    given = {name: each for name, each in OTHERS.items() if ARGUMENTS[name].template == "layered"}
    spec = merge(resolve([]).shape)
    assert layering.plain(merge(resolve([]).shape, check(given, "here"))) == spec
    assert layering.plain(merge(resolve([]).shape, check({"ram": "2G"}, "here"))) != spec


def test_another_disk_or_runtime_image_needs_another_template() -> None:
    assert key(GuestImage("debian-13-abc", "debian", "other")) != key()
    assert key(runtime="runtime:2") != key()


def test_default_values_need_no_other_template() -> None:
    assert key(ram=1024) == key()


class FakeOpenStore:
    """The part of a store that loading uses."""

    def __init__(self, manifest: bytes) -> None:
        self._manifest = manifest
        self.removed: list[tuple[str, ...]] = []
        self.forgotten: list[str] = []

    def forget(self, place: str) -> None:
        self.forgotten.append(place)

    def shell(self, _script: str, *words: str) -> None:
        self.removed.append(words)

    def scratch(self) -> "nullcontext[str]":
        return nullcontext("/store/.scratch-1")

    def manifest(self, place: str) -> Any:
        assert place == "templates/abc"
        return json.loads(self._manifest)


def test_a_template_is_read_from_its_manifest() -> None:
    session = resumable.Session({"A": "00ff"}, {"session_id": "01"})
    template = Template("abc", "guests/debian-13-abc", "alice", Keys.generate(), session, "no python3")
    spec = merge(resolve([]).shape)
    assert _load("abc", cast("OpenStore", FakeOpenStore(_manifest(template, spec, GUEST)))) == template


@pytest.mark.parametrize("manifest", [b"{}", b'{"keys": {"login": {}}}', b'{"keys": []}', b'{"keys": {"login": 1}}'])
def test_a_damaged_manifest_counts_as_missing(manifest: bytes) -> None:
    assert _load("abc", cast("OpenStore", FakeOpenStore(manifest))) is None


@pytest.mark.parametrize(
    "field", [{"user": "-oProxyCommand=id"}, {"guest": "guests/../../etc"}, {"guest": "guests/x; id"}, {"guest": 1}]
)
def test_a_manifest_with_an_invalid_name_counts_as_damaged(field: dict[str, object]) -> None:
    template = Template("abc", GUEST.place, "alice", Keys.generate())
    manifest = json.loads(_manifest(template, merge(resolve([]).shape), GUEST))
    assert _load("abc", cast("OpenStore", FakeOpenStore(json.dumps(manifest).encode()))) is not None
    assert _load("abc", cast("OpenStore", FakeOpenStore(json.dumps({**manifest, **field}).encode()))) is None


@pytest.mark.parametrize(("stored", "goes"), [("the same", True), ("another", False), ("damaged", True)])
def test_a_condemned_template_is_removed_unless_it_was_replaced(
    stored: str, goes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec, ours = merge(resolve([]).shape), Template("abc", "guests/debian-13-abc", "debian", Keys.generate())
    other = replace(ours, keys=Keys.generate())
    opened = FakeOpenStore(
        b"{}" if stored == "damaged" else _manifest(ours if stored == "the same" else other, spec, GUEST)
    )
    store = cast("Any", lambda: nullcontext(opened))
    templates = Templates(store, holds=SharedLocks(), runtime_id=lambda: "runtime:1", progress=SILENT)
    assert not templates.forget(ours, condemned=False)
    assert (opened.removed, opened.forgotten) == ([], [ours.place]), "the next clone uses the present template"
    assert templates.forget(ours, condemned=True) is goes
    assert opened.removed == ([("/store/.scratch-1", "/store/templates/abc")] if goes else [])


def test_plugin_and_runtime_image_use_the_same_names() -> None:
    ethernet = cloud_init.NETWORK_CONFIG["ethernets"]
    assert isinstance(ethernet, dict)
    assert ethernet["eth0"]["match"] == {"macaddress": protocol.GUEST_MAC}
    assert protocol.CLONE_PORT in identity.LEAVE
    assert protocol.SSH_PORT in resumable.SERVE
    assert (clone_helper.ASKS_FOR_TIME, clone_helper.READY) == (clone_agent.ASKS_FOR_TIME, clone_agent.READY)


def test_the_key_of_large_files_is_computed_fast() -> None:
    """It took 9 s for 10 MiB, for every VM."""
    content = b"0123456789abcdef" * 65536 * 10
    began = time.process_time()
    first = key(files={"/a": content})
    assert time.process_time() - began < 1
    assert first != key(files={"/a": content[:-1]})
    assert first != key(files={"/b": content})
