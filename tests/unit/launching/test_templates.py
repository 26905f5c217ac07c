"""What shapes a template, and so is in its key."""

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from virtainer import individual as supervisor
from virtainer import line as supervisors_line
from virtainer import network

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import check, merge
from pytest_virtainers.guests.images import Guest
from pytest_virtainers.launching import cloud_init
from pytest_virtainers.launching.templates import Template, Templates, _load, _manifest
from pytest_virtainers.ssh import resumable
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm import clone_helper, individual

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_virtainers.store.volume import Workshop

GUEST = Guest("debian-13-abc", "debian", "digest")


def no_store() -> "AbstractContextManager[Workshop]":
    raise AssertionError("a key needs none")


def key(guest: Guest = GUEST, runtime: str = "runtime:1", **arguments: Any) -> str:
    spec = merge(resolve([]).shape, check(arguments, "here"))
    templates = Templates(no_store, holds=SharedLocks(), runtime_id=runtime, progress=SILENT)
    return templates._key(spec, guest)


def test_it_does_not_matter_who_says_from_what_a_machine_boots() -> None:
    guest = replace(GUEST, firmware="uefi")
    assert key(guest) == key(guest, firmware="uefi") != key(guest, firmware="bios")


def test_a_guest_for_another_processor_is_another_machine() -> None:
    assert key(replace(GUEST, arch="arm64")) != key(GUEST)


@pytest.mark.parametrize(
    "arguments",
    [
        {"ram": "2G"},
        {"cpus": 2},
        {"disk": "11G"},
        {"accel": "tcg"},
        {"firmware": "uefi"},
        {"internet": False},
        {"user": "alice"},
        {"packages": ["hello"]},
        {"run_commands": ["true"]},
        {"files": {"/a": "b"}},
        {"user_data": {"timezone": "UTC"}},
        {"meta_data": {"tier": "web"}},
        {"env": {"CIDR": "192.168.7"}},
        {"prepare": len},
    ],
)
def test_what_shapes_a_machine_gives_it_another_template(arguments: dict[str, Any]) -> None:
    assert key(**arguments) != key()


def test_so_do_another_disk_and_another_runtime_image() -> None:
    assert key(Guest("debian-13-abc", "debian", "other")) != key()
    assert key(runtime="runtime:2") != key()


@pytest.mark.parametrize(
    "arguments", [{"name": "web"}, {"hostname": "web"}, {"scope": "module"}, {"boot_timeout": 5}, {"ram": 1024}]
)
def test_who_a_machine_is_does_not(arguments: dict[str, Any]) -> None:
    assert key(**arguments) == key()


class Shop:
    """As much of a store as loading needs."""

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


def test_a_manifest_brings_a_template_back() -> None:
    session = resumable.Session({"A": "00ff"}, {"session_id": "01"})
    template = Template("abc", "guests/debian-13-abc", "alice", Keys.generate(), session, "no python3")
    spec = merge(resolve([]).shape)
    assert _load("abc", cast("Workshop", Shop(_manifest(template, spec, GUEST)))) == template


@pytest.mark.parametrize("manifest", [b"{}", b'{"keys": {"login": {}}}', b'{"keys": []}', b'{"keys": {"login": 1}}'])
def test_a_damaged_manifest_counts_as_none(manifest: bytes) -> None:
    assert _load("abc", cast("Workshop", Shop(manifest))) is None


@pytest.mark.parametrize(
    "field", [{"user": "-oProxyCommand=id"}, {"guest": "guests/../../etc"}, {"guest": "guests/x; id"}, {"guest": 1}]
)
def test_a_manifest_with_what_is_no_name_counts_as_damaged(field: dict[str, object]) -> None:
    template = Template("abc", GUEST.place, "alice", Keys.generate())
    manifest = json.loads(_manifest(template, merge(resolve([]).shape), GUEST))
    assert _load("abc", cast("Workshop", Shop(json.dumps(manifest).encode()))) is not None
    assert _load("abc", cast("Workshop", Shop(json.dumps({**manifest, **field}).encode()))) is None


@pytest.mark.parametrize(("stored", "goes"), [("the same", True), ("another", False), ("damaged", True)])
def test_a_condemned_template_goes_unless_another_one_has_its_place(
    stored: str, goes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec, ours = merge(resolve([]).shape), Template("abc", "guests/debian-13-abc", "debian", Keys.generate())
    other = replace(ours, keys=Keys.generate())
    shop = Shop(b"{}" if stored == "damaged" else _manifest(ours if stored == "the same" else other, spec, GUEST))
    store = cast("Any", lambda: nullcontext(shop))
    templates = Templates(store, holds=SharedLocks(), runtime_id="runtime:1", progress=SILENT)
    assert not templates.forget(ours, condemned=False)
    assert (shop.removed, shop.forgotten) == ([], [ours.place]), "the next clone starts from what is there now"
    assert templates.forget(ours, condemned=True) is goes
    assert shop.removed == ([("/store/.scratch-1", "/store/templates/abc")] if goes else [])


def test_both_sides_of_a_clone_use_the_same_words() -> None:
    ethernet = cloud_init.NETWORK_CONFIG["ethernets"]
    assert isinstance(ethernet, dict)
    assert ethernet["eth0"]["match"] == {"macaddress": network.GUEST_MAC}
    assert individual._PORT == supervisor.PORT
    assert (resumable._SERIAL_PORT, resumable.PORT) == (supervisors_line.NAME, supervisors_line.TCP_PORT)
    assert clone_helper.ASKS_FOR_TIME == supervisor.ASKS_FOR_TIME


def test_the_key_of_much_content_is_made_at_once() -> None:
    """It took 9 s for 10 MiB, for every VM."""
    content = b"0123456789abcdef" * 65536 * 10
    began = time.process_time()
    first = key(files={"/a": content})
    assert time.process_time() - began < 1
    assert first != key(files={"/a": content[:-1]})
    assert first != key(files={"/b": content})
