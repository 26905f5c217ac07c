"""Digests of files in the store: what they depend on, and that they show a single changed bit."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from virtainer import digests

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20


def sparse_file(path: Path, *pieces: tuple[int, bytes], length: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        for at, data in pieces:
            file.seek(at)
            file.write(data)
        file.truncate(length)
    return path


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def test_holes_and_zeros_are_the_same(tmp_path: Path) -> None:
    pieces = (5 * MIB + 100, b"data"), (40 * MIB, os.urandom(3 * MIB))
    holes = sparse_file(tmp_path / "holes", *pieces)
    zeros = tmp_path / "zeros"
    zeros.write_bytes(holes.read_bytes())
    assert holes.stat().st_blocks < zeros.stat().st_blocks
    assert digests.sparse(holes) == digests.sparse(zeros)


def test_length_place_and_each_bit_count(tmp_path: Path) -> None:
    seen = [
        digests.sparse(sparse_file(tmp_path / "file", *pieces, length=length))
        for pieces, length in [
            ([], 0),
            ([], MIB),
            ([], MIB + 1),
            ([(0, b"x")], MIB),
            ([(1, b"x")], MIB),
            ([(MIB, b"x")], 2 * MIB),
            ([(0, b"x")], 2 * MIB),
        ]
    ]
    assert len(set(seen)) == len(seen)
    file = sparse_file(tmp_path / "file", (7 * MIB, os.urandom(2 * MIB)))
    before = digests.sparse(file), digests.plain(file)
    for at in (8 * MIB + 77777, 63 * MIB, 64 * MIB - 1):
        flip(file, at)
        assert digests.sparse(file) != before[0]
        assert digests.plain(file) != before[1]
        flip(file, at)
        assert (digests.sparse(file), digests.plain(file)) == before


def rows(folder: Path) -> dict[str, tuple[bool, str]]:
    """Return by file whether it is unchanged, and the error otherwise."""
    found = list(digests.verify(folder))
    return {row["file"]: (row["sha256"] is not None and row["sha256"] == row["was"], row["error"]) for row in found}


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    (tmp_path / "disk.qcow2").write_bytes(os.urandom(3 * MIB))
    about = {"sha256": "as it came", "stored_sha256": digests.plain(tmp_path / "disk.qcow2")}
    (tmp_path / "manifest.json").write_text(json.dumps({"disk": about}))
    return tmp_path


def test_a_flipped_bit_in_a_guest_image_is_found(guest: Path) -> None:
    assert rows(guest) == {"disk.qcow2": (True, "")}
    flip(guest / "disk.qcow2", 2 * MIB + 1)
    assert rows(guest) == {"disk.qcow2": (False, "")}
    (guest / "disk.qcow2").unlink()
    assert rows(guest) == {"disk.qcow2": (False, digests.MISSING)}
    assert rows(guest / "none") == {"manifest.json": (False, digests.MISSING)}


@pytest.mark.parametrize("manifest", [b"{}", b"[]", b"no JSON", b"\xff", b'{"disk": 3}'])
def test_a_damaged_manifest_is_found(guest: Path, manifest: bytes) -> None:
    (guest / "manifest.json").write_bytes(manifest)
    ((file, (good, error)),) = rows(guest).items()
    assert (file, good, error.partition(" (")[0]) == ("manifest.json", False, "it cannot be read")


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"prints": {"ram": "x"}}, {"ram": (False, "")}),
        ({"prints": {"ram": "x"}, "digests": {"ram": "y"}}, {"ram": (False, "")}),
        ({"prints": {"ram": "x"}, "digests": {"gone": "y"}}, {"gone": (False, digests.MISSING)}),
        ({}, {"template.json": (False, "it cannot be read (KeyError)")}),
    ],
)
def test_templates_have_their_digests_in_their_facts(
    tmp_path: Path, facts: dict[str, Any], found: dict[str, tuple[bool, str]]
) -> None:
    (tmp_path / "ram").write_bytes(b"x")
    (tmp_path / "template.json").write_text(json.dumps(facts))
    assert rows(tmp_path) == found


def test_a_refused_template_has_no_files_to_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"keys": {}, "disk": 3072, "refusal": "no python3"}))
    assert rows(tmp_path) == {}


def test_a_folder_replaced_during_the_check_is_not_mixed_up(guest: Path) -> None:
    digest = json.loads((guest / "manifest.json").read_text())["disk"]["stored_sha256"]

    def replace() -> None:
        if guest.exists():
            guest.rename(guest.with_name("former"))
            guest.mkdir()
            (guest / "disk.qcow2").write_bytes(b"another")
            guest.rename(guest.with_name("new"))

    (guest / "disk.qcow2").chmod(0o644)
    with (guest / "disk.qcow2").open("r+b") as file:
        file.truncate(3 * MIB)
    found = list(digests.verify(guest, replace))
    assert [row["sha256"] for row in found] == [digest]


def test_the_command_prints_a_row_for_each_file(guest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert digests.main([str(guest)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["folder"], row["file"], row["sha256"] == row["was"]) == (str(guest), "disk.qcow2", True)
    assert digests.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: verify")
