import base64
import io
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pycdlib
import pytest
import yaml

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, check, merge
from pytest_virtainers.errors import SpecError
from pytest_virtainers.launching import cloud_init
from pytest_virtainers.ssh.keys import Keys
from tests.seeds import ready

KEYS = Keys.generate()


def spec(**arguments: Any) -> Spec:
    return merge(resolve([]).shape, check(arguments, "here"))


def read(iso: bytes) -> dict[str, Any]:
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(iso))
    assert image.pvd.volume_identifier.decode().strip() == "cidata"
    found = {}
    for name in ("user-data", "meta-data", "network-config"):
        rock_ridge, joliet = io.BytesIO(), io.BytesIO()
        image.get_file_from_iso_fp(rock_ridge, rr_path=f"/{name}")
        image.get_file_from_iso_fp(joliet, joliet_path=f"/{name}")
        assert rock_ridge.getvalue() == joliet.getvalue()
        found[name] = rock_ridge.getvalue().decode()
    image.close()
    return found


def test_the_iso_has_the_files_that_nocloud_reads() -> None:
    files = read(cloud_init.iso(spec(name="db"), KEYS, "debian", "id-1"))
    assert files["user-data"].startswith("#cloud-config\n")
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": "id-1", "local-hostname": "db"}
    assert yaml.safe_load(files["network-config"])["version"] == 2


def test_meta_data_of_the_marker_takes_precedence() -> None:
    files = read(
        cloud_init.iso(spec(name="db", meta_data="{local-hostname: other, tier: web}"), KEYS, "debian", "id-1")
    )
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": "id-1", "local-hostname": "other", "tier": "web"}


def test_an_instance_id_of_the_marker_is_the_prefix_of_the_real_one() -> None:
    files = read(cloud_init.iso(spec(meta_data={"instance-id": "iid-local01"}), KEYS, "debian", "id-1"))
    assert yaml.safe_load(files["meta-data"])["instance-id"] == "iid-local01-id-1"


def test_a_ready_seed_is_read(tmp_path: Path) -> None:
    own = tmp_path / "ours.iso"
    own.write_bytes(cloud_init.iso(spec(name="db", user_data={"timezone": "UTC"}), KEYS, "debian", "id-1"))
    read, passed_over = cloud_init.unpack(own)
    assert read["user_data"]["timezone"] == "UTC"
    assert (read["meta_data"], passed_over) == ({"instance-id": "id-1", "local-hostname": "db"}, ["network-config"])
    theirs = ready(tmp_path / "theirs.iso", user_data="#cloud-config\n", vendor_data="x", meta_data="{tier: web}")
    assert cloud_init.unpack(theirs) == ({"user_data": {}, "meta_data": {"tier": "web"}}, ["vendor-data"])
    windows = ready(tmp_path / "windows.iso", user_data="#cloud-config\r\ntimezone: UTC\r\n", key="\udcff")
    assert cloud_init.unpack(windows) == ({"user_data": {"timezone": "UTC"}, "meta_data": {}}, ["key"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes": "x"}, "is not a seed: it has no user-data, but notes"),
        ({}, "is not a seed: it has no user-data, but no files"),
        ({"user_data": "#!/bin/sh\ntrue"}, "its user-data begins with '#!/bin/sh'; our key can be added to #cloud-c"),
        ({"user_data": "#cloud-config-archive\n- a"}, "its user-data begins with '#cloud-config-archive'; our key"),
        ({"user_data": "#cloud-config\n- a"}, "its user-data is not what cloud-init reads: it is a list, not a map"),
        ({"user_data": "#cloud-config\n- [a, b]"}, "its user-data is not what cloud-init reads: it is a list, not"),
        ({"user_data": "#cloud-config\n{"}, "its user-data is not what cloud-init reads: "),
        ({"user_data": "#cloud-config", "meta_data": "text"}, "its meta-data is not what cloud-init reads: "),
        ({"user_data": "\udcff"}, "is not an ISO image of texts: "),
    ],
)
def test_an_unusable_seed_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        cloud_init.unpack(ready(tmp_path / "x.iso", **files))
    assert f"{tmp_path / 'x.iso'}" in str(caught.value)
    assert message in str(caught.value)


def test_a_seed_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"x\.iso cannot be read: No such file or directory"):
        cloud_init.unpack(tmp_path / "x.iso")
    whole = ready(tmp_path / "x.iso", user_data="#cloud-config\n").read_bytes()
    damaged = bytearray(whole)
    damaged[16 * 2048 + 156 : 16 * 2048 + 190] = b"\xff" * 34  # the record of its root folder
    for content in (b"no ISO", whole[: len(whole) // 2], bytes(damaged)):
        (tmp_path / "x.iso").write_bytes(content)
        with pytest.raises(SpecError, match=r"x\.iso is not an ISO image of texts: "):
            cloud_init.unpack(tmp_path / "x.iso")


def test_login_requires_the_key_and_the_host_key_is_given() -> None:
    config = cloud_init.user_data(spec(), KEYS, "debian")
    (account,) = config["users"]
    assert account["name"] == "debian"
    assert account["ssh_authorized_keys"] == [KEYS.login.public]
    assert account["lock_passwd"] is True
    assert config["ssh_pwauth"] is False
    assert config["ssh_keys"] == {"ed25519_private": KEYS.host.private, "ed25519_public": KEYS.host.public}


def test_user_data_of_the_marker_is_kept_and_extended() -> None:
    given = spec(
        user_data={"users": [{"name": "alice"}], "packages": ["jq"], "timezone": "UTC", "ssh_pwauth": True},
        packages=["nginx"],
        run_commands=["echo $HOME", ["touch", "/a b"]],
        files={"/etc/motd": b"\xffhi"},
    )
    config = cloud_init.user_data(given, KEYS, "debian")
    assert [account["name"] for account in config["users"]] == ["alice", "debian"]
    assert config["packages"] == ["jq", "nginx"]
    assert config["runcmd"] == ["echo $HOME", ["touch", "/a b"]]
    assert base64.b64decode(config["write_files"][0]["content"]) == b"\xffhi"
    assert (config["timezone"], config["ssh_pwauth"]) == ("UTC", True)
    assert given.user_data["packages"] == ["jq"], "the marker's own mapping must not change"


def test_every_vm_has_its_own_keys() -> None:
    others = Keys.generate()
    assert len({KEYS.login.private, KEYS.host.private, others.login.private, others.host.private}) == 4
    assert KEYS.login.paramiko().get_base64() in KEYS.login.public


MANY = {"/opt/my data/big": b"\0\xff" * 300_000, "/etc/small": b"small"}


def test_small_files_are_in_the_user_data() -> None:
    config = cloud_init.user_data(spec(files={"/a": "b"}), KEYS, "debian")
    assert config["write_files"] == [{"path": "/a", "encoding": "b64", "content": "Yg=="}]
    assert "bootcmd" not in config


def test_large_files_are_files_of_the_seed() -> None:
    iso = cloud_init.iso(spec(files=MANY), KEYS, "debian", "id-1")
    assert len(read(iso)["user-data"]) < 8 * 1024
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(iso))
    for number, content in enumerate(MANY.values()):
        found = io.BytesIO()
        image.get_file_from_iso_fp(found, rr_path=f"/file-{number}")
        assert found.getvalue() == content
    image.close()


def test_large_files_are_copied_after_bootcmd_of_the_marker() -> None:
    own = {"bootcmd": ["mkdir /opt"], "write_files": [{"path": "/etc/small", "content": "x"}, {"path": "/other"}]}
    config = cloud_init.user_data(spec(files=MANY, user_data=own), KEYS, "debian")
    assert config["bootcmd"][0] == "mkdir /opt"
    assert config["bootcmd"][1][:3] == ["cloud-init-per", "instance", "virtainers-files"]
    assert config["write_files"] == [{"path": "/other"}], "the argument's files are the last, as in one list"


def test_the_copied_files_have_their_names_contents_and_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run in a folder; the seed is "mounted" by a copy."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for number, content in enumerate(MANY.values()):
        (mounted / f"file-{number}").write_bytes(content)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {
        "mount": f'cp {mounted}/* "$4"',
        "umount": 'rm "$1"/*',
        "blkid": "echo /dev/seed",
        "chown": "true",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    files = {f"{tmp_path}{path}": content for path, content in MANY.items()}
    config = cloud_init.user_data(spec(files=files), KEYS, "debian")
    subprocess.run(config["bootcmd"][0][3:], check=True, umask=0o077)
    for path, content in files.items():
        assert Path(path).read_bytes() == content
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o644
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o755
