"""The five sources of a cloud-init seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from virtainer import seed
from virtainer.exit_reasons import End, Reason

if TYPE_CHECKING:
    from pathlib import Path

KEY = "ssh-ed25519 AAAAC3Nz me@host\n"


def write(folder: Path, **files: str) -> dict[str, str]:
    """Put files (`_` stands for `-`) into the folder of the sources; return the files of the seed."""
    for name, text in files.items():
        (folder / name.replace("_", "-")).write_text(text)
    return dict(seed.plan(folder).files)


def test_a_ready_iso_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "cloud_init.iso").write_bytes(b"iso")
    assert write(tmp_path, user_data="#cloud-config\n") == {}
    assert seed.plan(tmp_path).ready == tmp_path / "cloud_init.iso"


def test_user_data_with_meta_data(tmp_path: Path) -> None:
    files = {"user-data": "#!/bin/sh\n", "meta-data": "instance-id: x\n"}
    assert write(tmp_path, **files) == files


def test_user_data_alone_gets_the_default_meta_data(tmp_path: Path) -> None:
    files = write(tmp_path, user_data="#!/bin/sh\n")
    assert files["user-data"] == "#!/bin/sh\n"
    assert files["meta-data"] == "instance-id: localimage-01\nlocal-hostname: cloudimage\n"


def test_a_key_alone_becomes_user_data(tmp_path: Path) -> None:
    (tmp_path / "id_rsa.pub").write_text("# mine\n" + KEY + KEY)
    files = write(tmp_path)
    line = '"ssh-ed25519 AAAAC3Nz me@host"'
    assert files["user-data"] == f"#cloud-config\nssh_authorized_keys: [{line}, {line}]\n"
    assert files["meta-data"] == seed.META_DATA


def test_user_data_takes_precedence_over_a_key_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "id_rsa.pub").write_text(KEY)
    assert write(tmp_path, user_data="#cloud-config\n")["user-data"] == "#cloud-config\n"
    assert "id_rsa.pub is not used" in seed.plan(tmp_path).how


def test_meta_data_goes_with_a_key(tmp_path: Path) -> None:
    (tmp_path / "id_rsa.pub").write_text(KEY)
    assert write(tmp_path, meta_data="instance-id: x\n")["meta-data"] == "instance-id: x\n"


def test_without_sources_the_password_is_password(tmp_path: Path) -> None:
    files = write(tmp_path)
    assert "password: password\n" in files["user-data"]
    assert "ssh_pwauth: true" in files["user-data"]
    assert seed.plan(tmp_path).how == "password"


def test_network_config_is_included(tmp_path: Path) -> None:
    assert write(tmp_path, network_config="version: 2\n")["network-config"] == "version: 2\n"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("id_rsa.pub", b"-----BEGIN OPENSSH PRIVATE KEY-----\nx y\n", "is a private key"),
        ("id_rsa.pub", b"hello\n", "is not an SSH public key"),
        ("id_rsa.pub", b"", "is empty"),
        ("user-data", b"\xff\xfe", "is not UTF-8 text"),
        ("cloud_init.iso", b"", "is empty"),
    ],
)
def test_bad_sources_are_refused_by_name(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(End, match=f"{name} {complaint}") as caught:
        seed.plan(tmp_path)
    assert caught.value.reason is Reason.SEED


def test_a_directory_in_place_of_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "user-data").mkdir()
    with pytest.raises(End, match="user-data is a directory: docker makes one when the path given to -v"):
        seed.plan(tmp_path)
