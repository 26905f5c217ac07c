"""Guest disks that are accepted, and those that are refused."""

from __future__ import annotations

import lzma
import os
from typing import TYPE_CHECKING

import pytest
from virtainer import guest_disk, tools
from virtainer.exit_reasons import End, Reason

from tests.unit.runtime import hostile_disks

if TYPE_CHECKING:
    from pathlib import Path

BOOT_SECTOR = bytes(510) + b"\x55\xaa"


def unusable(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(End) as caught:
        guest_disk.inspect(path)
    assert caught.value.reason is Reason.IMAGE
    return str(caught.value)


@pytest.mark.parametrize("disk", hostile_disks.REFUSED, ids=lambda disk: disk.name)
def test_hostile_disks_are_refused_before_qemu_opens_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: hostile_disks.Disk
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert disk.words in unusable(tmp_path / "disk", disk.content)


def test_a_raw_disk_with_a_boot_sector_passes(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(BOOT_SECTOR + bytes(512))
    assert guest_disk.inspect(tmp_path / "disk")[:3] == (tmp_path / "disk", "raw", 1024)


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a fake `qemu-img` first on PATH."""
    (folder / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_qemu_img_gets_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, f'echo "$1 $2 $3 $4" >{tmp_path}/said; exit 3')
    (tmp_path / "disk").write_bytes(hostile_disks.qcow2())
    assert guest_disk.inspect(tmp_path / "disk")[:3] == (tmp_path / "disk", "qcow2", 2**20), "leaks do no harm"
    assert (tmp_path / "said").read_text() == "check -q -f qcow2\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'ERROR cluster 7' >&2; exit 2",
            "is damaged or cut short: qemu-img check failed (2): ERROR cluster 7. F",
        ),
        (
            "exec sleep 60",
            "takes more work than an honest disk of its size: qemu-img check was still at work after 0.2 s",
        ),
        ("exec yes ERROR", "is damaged or cut short: qemu-img check reports more errors than can be shown"),
    ],
)
def test_disks_on_which_qemu_img_fails_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(tools, "_BASE_SECONDS", 0.2 if "sleep" in script else 60)
    pretend(tmp_path, monkeypatch, script)
    assert words in unusable(tmp_path / "disk", hostile_disks.qcow2())


def refusal(path: Path) -> str:
    with pytest.raises(End) as caught:
        guest_disk.readable(path)
    assert caught.value.reason is Reason.IMAGE
    return str(caught.value)


def test_paths_without_a_file_are_refused(tmp_path: Path) -> None:
    empty, dangling = tmp_path / "empty", tmp_path / "dangling"
    empty.touch()
    dangling.symlink_to("/nowhere/disk")
    assert "is empty" in refusal(empty)
    assert "symlink to /nowhere/disk" in refusal(dangling)
    assert "is a directory: docker makes one when" in refusal(tmp_path)


def test_a_symlink_to_a_file_is_fine(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x")
    (tmp_path / "image").symlink_to("disk")
    assert guest_disk.readable(tmp_path / "image") == tmp_path / "image"


def test_a_fingerprint_follows_length_and_content(tmp_path: Path) -> None:
    names = []
    for number, content in enumerate([b"a" * 10000, b"a" * 10001, b"a" * 9999 + b"b"]):
        path = tmp_path / str(number)
        path.write_bytes(content)
        names.append(guest_disk.fingerprint(path))
    assert len(set(names)) == 3
    assert guest_disk.fingerprint(tmp_path / "0") == names[0]


def test_an_xz_archive_is_unpacked_once_and_stays_sparse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = BOOT_SECTOR + bytes(8 * 2**20)
    archive = tmp_path / "image.xz"
    archive.write_bytes(lzma.compress(content))
    unpacked = guest_disk.unpacked(archive, tmp_path / "mounted")
    assert unpacked.read_bytes() == content
    assert unpacked.stat().st_blocks * 512 < len(content) / 2
    assert guest_disk.unpacked(archive, tmp_path / "mounted") == unpacked
    assert capfd.readouterr().err.count("unpacking") == 1


def test_an_xz_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_disk, "_MOST_BYTES", 2**30)
    archive = tmp_path / "image.xz"
    archive.write_bytes(lzma.compress(bytes(2**25), preset=0) * 64)
    with pytest.raises(End, match=r"what is in the \.xz file is larger than 1 GiB"):
        guest_disk.unpacked(archive, tmp_path / "mounted")
    assert list((tmp_path / "mounted").iterdir()) == []


def test_an_xz_archive_may_have_several_streams(tmp_path: Path) -> None:
    parts = BOOT_SECTOR + bytes(3 * 2**20), b"more" * 2**20, b"the end"
    archive = tmp_path / "image.xz"
    archive.write_bytes(b"".join(map(lzma.compress, parts)))
    assert guest_disk.unpacked(archive, tmp_path / "mounted").read_bytes() == b"".join(parts)


@pytest.mark.parametrize(
    ("content", "complaint"), [(lzma.compress(bytes(5000))[:-20], "truncated"), (b"no archive", "not an .xz file")]
)
def test_a_bad_archive_leaves_nothing_behind(tmp_path: Path, content: bytes, complaint: str) -> None:
    archive = tmp_path / "image.xz"
    archive.write_bytes(content)
    with pytest.raises(End, match=complaint):
        guest_disk.unpacked(archive, tmp_path / "mounted")
    assert list((tmp_path / "mounted").iterdir()) == []
