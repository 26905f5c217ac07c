"""Hostile manifests of evidence: every field is refused or harmless."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_virtainers.config import architecture
from pytest_virtainers.config.spec import Spec
from pytest_virtainers.errors import SpecError
from pytest_virtainers.evidence import manifest_file

if TYPE_CHECKING:
    from pathlib import Path

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIMgpRl32MOMqKSSfGcN9YIeRJdhlF4V6e+yahUJ0jDq"
VALID: dict[str, Any] = {
    "format": 1,
    "name": "web",
    "user": "debian",
    "host_key": HOST_KEY,
    "spec": {
        "image": "debian-13",
        "ram": 512,
        "cpus": 2,
        "disk": 3072,
        "accel": "auto",
        "arch": "amd64",
        "firmware": "bios",
        "env": {"CIDR": "192.168.7"},
        "boot_timeout": 300.0,
        "internet": True,
        "name": "web",
        "hostname": None,
    },
    "guest": {"key": "debian-13-0123", "digest": "d" * 64},
    "machine": {"memory": True, "base": "/store/x", "machine": {"RAM": 512, "virtio": True, "qemu": "1-2"}},
    "sha256": {"overlay.qcow2": "a" * 64, "memory.state": "b" * 64},
    "missing": {},
}
PATHS = [
    *((name,) for name in VALID),
    *((name, inner) for name in ("spec", "guest", "machine", "sha256") for inner in VALID[name]),
    *(("spec", "env", name) for name in ("CIDR", "LD_PRELOAD", "SHUTDOWN_TIMEOUT")),
    *(("machine", "machine", name) for name in ("RAM", "__class__", "x\ny")),
    *(("spec", name) for name in ("user", "files", "prepare", "$(id)", "network", "-o")),
    ("missing", "overlay.qcow2"),
    ("seal",),
]
HOSTILE: list[Any] = [
    *("x; touch /tmp/ran #", "$(touch /tmp/ran)", "`id`", "-oProxyCommand=touch /tmp/ran", "--volume=/:/host", "-x"),
    *("..", "../../etc", "/etc/shadow", "guests/x", ".hidden", "a/b", "a\\b", "debian\n", "\ndebian", "a\0b", "~/x"),
    *("", " ", "x" * 5000, "\x1b]0;title\x07", "\x9b2J", "\u202e", "\ud800", "%h", "{{ x }}", "${HOME}", "*"),
    *("docker-image://evil", "https://203.0.113.1/disk", "file:///etc/shadow", "json:{}", "\uff19", "1e999"),
    *(None, True, False, 0, -1, 1, 2**31, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"), [], {}, [[]]),
    *({"LD_PRELOAD": "/mounted/resume/state"}, {"RESUME": "/"}, {"TEMPLATE_SAVE": "on"}, {"CIDR": "x\nRAM=1"}),
]
VALUES = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=40),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists),
    st.dictionaries(st.text(max_size=12), st.one_of(st.text(max_size=12), st.integers()), max_size=3),
)
NAME, USER = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", r"[a-z_][a-z0-9_-]{0,31}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "evidence"
    path.mkdir()
    return path


def read(folder: Path, content: object) -> manifest_file.Manifest | str:
    """Read a manifest with this content; return it, or the one line of its error."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "manifest.json").write_bytes(text)
    try:
        return manifest_file.read(folder)
    except SpecError as error:
        message = str(error)
    assert message.isprintable(), "one line without control characters"
    assert len(message) < 1000
    assert message.startswith(f"{folder}/manifest.json: ")
    return message.removeprefix(f"{folder}/manifest.json: ")


def check(manifest: manifest_file.Manifest) -> None:
    """Check the fields that become a path, a command line, a configuration or an environment."""
    spec = manifest.spec
    assert re.fullmatch(USER, manifest.user)
    assert re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/=]+", manifest.host_key)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", manifest.guest_key)
    assert re.fullmatch(r"[0-9a-f]{64}", manifest.guest_digest)
    assert re.fullmatch(NAME, spec.name)
    assert re.fullmatch(NAME, spec.guest_hostname)
    assert spec.image.isprintable()
    assert (spec.accel in {"auto", "kvm", "tcg"}, spec.arch in architecture.FIRMWARE) == (True, True)
    assert spec.firmware in {"auto", "bios", "uefi"}
    assert spec.env.keys() <= {"CIDR", "DISK_CACHE", "OS_VARIANT", "SHUTDOWN_TIMEOUT"}
    assert all(value.isprintable() for value in spec.env.values())
    assert all(type(each) is int and 0 < each <= 2**30 for each in (spec.ram, spec.cpus, spec.disk))
    assert type(spec.internet) is bool
    assert 300 <= spec.boot_timeout <= 10**9
    remembered = {name: getattr(spec, name) for name in manifest_file.REMEMBERED}
    plain = Spec(**remembered, provision_timeout=120.0, scope="", template=False)
    assert spec == plain.__class__(**{**plain.__dict__, "scope": spec.scope}), "no other argument is set"
    assert all(re.fullmatch(r"[0-9a-f]{64}", each) for each in manifest.digests.values())
    assert all(isinstance(each, str | int) for each in (manifest.machine or {}).values())
    assert manifest.no_disk.isprintable()
    assert not manifest.is_ours


def test_a_valid_manifest_is_read(folder: Path) -> None:
    manifest = read(folder, VALID)
    assert not isinstance(manifest, str)
    check(manifest)
    assert (manifest.user, manifest.guest_key, manifest.spec.env) == (
        "debian",
        "debian-13-0123",
        {"CIDR": "192.168.7"},
    )
    assert manifest.machine == {"RAM": 512, "virtio": True, "qemu": "1-2"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("guest", "key"), "x; id", "guest.key='x; id': a name of letters, digits, ., _ and - is expected"),
        (("guest", "key"), "..", "guest.key='..': a name of letters"),
        (("guest", "digest"), "D" * 64, f"guest.digest={repr('D' * 64)[:57]}…: 64 hexadecimal digits are needed"),
        (("user",), "-oProxyCommand=id", "user='-oProxyCommand=id': a login name of a-z, 0-9, _ and - is needed"),
        (("spec", "env"), {"LD_PRELOAD": "/x"}, "spec.env={'LD_PRELOAD': '/x'}: 'LD_PRELOAD' is none of CIDR, "),
        (("spec", "env"), {"OS_VARIANT": "\x1b"}, "spec.env={'OS_VARIANT': '\\x1b'}: OS_VARIANT has characters that"),
        (("spec", "files"), {"/x": "y"}, "spec.files is none of image, ram, "),
        (("spec", "\x1b[2J"), 1, "spec.'\\x1b[2J' is none of image, ram, "),
        (("spec", "name"), "a b", "spec.name='a b': a host name of 1 to 63 characters"),
        (
            ("spec", "image"),
            "x\x1b[2J",
            "spec.image='x\\x1b[2J': expected at most 16384 printable characters",
        ),
        (("spec", "arch"), "auto", "spec.arch='auto': allowed are amd64, arm64"),
        (("spec", "arch"), "arm64", "spec: web: arm64 machines boot from uefi, not from bios"),
        (("spec", "ram"), 10**400, "spec.ram=1"),
        (("spec",), [], "spec=[]: expected a mapping"),
        (("host_key",), HOST_KEY + "\nssh-rsa AAAA", "host_key="),
        (("host_key",), "@cert-authority * " + HOST_KEY, "host_key="),
        (("machine", "memory"), "yes", "machine.memory='yes': expected true or false"),
        (("machine", "machine"), dict.fromkeys(map(str, range(99)), 1), "machine.machine has 99 entries; at most 64"),
        (("machine", "machine"), {"RAM": [1]}, "machine.machine.RAM=[1]: expected at most"),
        (("sha256",), {"memory.state": 1}, "sha256.'memory.state'=1: 64 hexadecimal digits are needed"),
        (("format",), True, "format=True: it was written by another version; this version reads format 1"),
    ],
)
def test_errors_name_field_and_fact(path: tuple[str, ...], value: object, message: str, folder: Path) -> None:
    found = read(folder, changed(path, value))
    assert isinstance(found, str)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a manifest of evidence: Expecting value"),
        (b"\xff\xfe\xfd", "not a manifest of evidence: "),
        (b"[" * 100_000, "not a manifest of evidence: nested too deeply"),
        (b'{"format": 1, "spec": ' + b"[" * 900 + b"]" * 900 + b"}", ""),
        (b'{"format": NaN}', "not a manifest of evidence: NaN is not a JSON number"),
        (b'{"format": -Infinity}', "not a manifest of evidence: -Infinity is not a JSON number"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not a manifest of evidence: Exceeds the limit"),
        (b"[]", "the manifest=[]: expected a mapping"),
        (b"{}", "format is missing"),
        (b'{"format": 1}', "spec=None: expected a mapping"),
        (b" " * (2**20 + 1), "it has 1048577 bytes; at most 1048576 are allowed"),
    ],
)
def test_malformed_manifests_are_reported_in_one_line(content: bytes, message: str, folder: Path) -> None:
    found = read(folder, content)
    assert isinstance(found, str)
    assert found.startswith(message)


def changed(path: tuple[str, ...], value: object) -> dict[str, Any]:
    """Return the valid manifest with another value at a path."""
    manifest = copy.deepcopy(VALID)
    inner = manifest
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    inner[path[-1]] = value
    return manifest


QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@QUICK
@given(st.sampled_from(PATHS), VALUES)
@example(("spec", "hostname"), "-x")
def test_one_hostile_field_is_refused_or_harmless(folder: Path, path: tuple[str, ...], value: object) -> None:
    manifest = read(folder, changed(path, value))
    if not isinstance(manifest, str):
        check(manifest)


@pytest.mark.parametrize("value", HOSTILE, ids=[str(number) for number in range(len(HOSTILE))])
def test_every_field_refuses_or_tolerates_every_hostile_value(value: object, folder: Path) -> None:
    for path in PATHS:
        manifest = read(folder, changed(path, value))
        if not isinstance(manifest, str):
            check(manifest)


@QUICK
@given(st.dictionaries(st.sampled_from([path[0] for path in PATHS]), VALUES))
def test_many_hostile_fields_are_refused_or_harmless(folder: Path, fields: dict[str, object]) -> None:
    manifest = read(folder, VALID | fields)
    if not isinstance(manifest, str):
        check(manifest)


@QUICK
@given(st.binary(max_size=200), st.integers(0, 1500))
def test_noise_in_a_manifest_is_refused_or_harmless(folder: Path, noise: bytes, at: int) -> None:
    valid = json.dumps(VALID).encode()
    manifest = read(folder, valid[:at] + noise + valid[at + len(noise) :])
    if not isinstance(manifest, str):
        check(manifest)


def test_control_characters_in_a_folder_name_are_escaped(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"^'/.*\\x1b\[2J/manifest\.json': there is no such file\. Name the folder of"
    ):
        manifest_file.read(tmp_path / "\x1b[2J")
    with pytest.raises(SpecError, match="there is no such file"):
        manifest_file.read(tmp_path / "a\0b")
