"""Copies of RAM files: the same content, without space for holes."""

import os
from pathlib import Path

import pytest
from virtainer import copying

MIB = 2**20


def test_a_copy_has_the_data_and_the_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for offset in (0, 7 * MIB + 1, 20 * MIB):
            os.pwrite(file.fileno(), f"at {offset}".encode() * 1000, offset)
        file.truncate(64 * MIB)
    copying.sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < MIB
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"x"])
def test_small_files_are_copied_too(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content)
    copying.sparse(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        copying.sparse(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "target"
