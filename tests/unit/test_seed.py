import base64
import io
from typing import Any

import pycdlib
import yaml

from pytest_virtainers import seed
from pytest_virtainers.keys import Keys
from pytest_virtainers.settings import resolve
from pytest_virtainers.spec import Spec, check, merge

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


def test_the_iso_has_what_nocloud_reads() -> None:
    files = read(seed.iso(spec(name="db"), KEYS, "debian", "id-1"))
    assert files["user-data"].startswith("#cloud-config\n")
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": "id-1", "local-hostname": "db"}
    assert yaml.safe_load(files["network-config"])["version"] == 2


def test_meta_data_of_ones_own_goes_over_ours() -> None:
    files = read(seed.iso(spec(name="db", meta_data="{local-hostname: other, tier: web}"), KEYS, "debian", "id-1"))
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": "id-1", "local-hostname": "other", "tier": "web"}


def test_login_is_by_key_alone_and_the_host_key_is_ours() -> None:
    config = seed.user_data(spec(), KEYS, "debian")
    (account,) = config["users"]
    assert account["name"] == "debian"
    assert account["ssh_authorized_keys"] == [KEYS.login.public]
    assert account["lock_passwd"] is True
    assert config["ssh_pwauth"] is False
    assert config["ssh_keys"] == {"ed25519_private": KEYS.host.private, "ed25519_public": KEYS.host.public}


def test_what_the_marker_gives_is_kept_and_extended() -> None:
    given = spec(
        user_data={"users": [{"name": "alice"}], "packages": ["jq"], "timezone": "UTC", "ssh_pwauth": True},
        packages=["nginx"],
        run_commands=["echo $HOME", ["touch", "/a b"]],
        files={"/etc/motd": b"\xffhi"},
    )
    config = seed.user_data(given, KEYS, "debian")
    assert [account["name"] for account in config["users"]] == ["alice", "debian"]
    assert config["packages"] == ["jq", "nginx"]
    assert config["runcmd"] == ["echo $HOME", ["touch", "/a b"]]
    assert base64.b64decode(config["write_files"][0]["content"]) == b"\xffhi"
    assert (config["timezone"], config["ssh_pwauth"]) == ("UTC", True)
    assert given.user_data["packages"] == ["jq"], "the marker's own mapping must not change"


def test_every_vm_has_keys_of_its_own() -> None:
    others = Keys.generate()
    assert len({KEYS.login.private, KEYS.host.private, others.login.private, others.host.private}) == 4
    assert KEYS.login.paramiko().get_base64() in KEYS.login.public
