"""What is taken for a guest disk, and what is refused."""

from __future__ import annotations

import lzma
from typing import TYPE_CHECKING, Any

import pytest
from virtainer import image
from virtainer.ending import End, Reason

if TYPE_CHECKING:
    from pathlib import Path

BOOT_SECTOR = bytes(510) + b"\x55\xaa"
FILE = {"name": "file", "info": {}}


def info(**more: Any) -> dict[str, Any]:
    """Build what `qemu-img info --output=json` says of a harmless qcow2."""
    plain = {
        "format": "qcow2",
        "virtual-size": 2**30,
        "children": [FILE],
        "format-specific": {"type": "qcow2", "data": {"compat": "1.1"}},
    }
    return plain | more


def test_a_plain_qcow2_passes() -> None:
    assert image.objection(info(), b"QFI\xfb") is None


def test_a_raw_disk_with_a_boot_sector_passes() -> None:
    assert image.objection({"format": "raw", "virtual-size": 512, "children": [FILE]}, BOOT_SECTOR) is None


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"backing-filename": "/etc/shadow"}, "has a backing file (/etc/shadow)"),
        ({"format-specific": {"data": {"data-file": "/etc/shadow"}}}, "keeps its data in another file (/etc/shadow)"),
        ({"format": "vmdk", "children": [{"name": "extents.0"}, FILE]}, "is spread over several files"),
        ({"encrypted": True}, "is encrypted"),
    ],
)
def test_a_disk_that_does_not_stand_alone_is_refused(said: dict[str, Any], complaint: str) -> None:
    assert (image.objection(info(**said), b"") or "").startswith(complaint)


@pytest.mark.parametrize(
    ("head", "hint"),
    [
        (b"hello", "no format that qemu-img knows, and no boot sector"),
        (b"\xfd7zXZ\x00" + bytes(600), "mount it as /image.xz"),
        (b"\x1f\x8b" + bytes(600), "compressed with gzip"),
    ],
)
def test_what_qemu_img_takes_for_raw_needs_a_boot_sector(head: bytes, hint: str) -> None:
    assert hint in (image.objection({"format": "raw", "children": [FILE]}, head) or "")


def refusal(path: Path) -> str:
    with pytest.raises(End) as caught:
        image.readable(path)
    assert caught.value.reason is Reason.IMAGE
    return str(caught.value)


def test_paths_that_hold_no_file(tmp_path: Path) -> None:
    empty, dangling = tmp_path / "empty", tmp_path / "dangling"
    empty.touch()
    dangling.symlink_to("/nowhere/disk")
    assert "is empty" in refusal(empty)
    assert "symlink to /nowhere/disk" in refusal(dangling)
    assert "is a directory: docker makes one when" in refusal(tmp_path)


def test_a_symlink_to_a_file_is_fine(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x")
    (tmp_path / "image").symlink_to("disk")
    assert image.readable(tmp_path / "image") == tmp_path / "image"


def test_a_fingerprint_follows_length_and_content(tmp_path: Path) -> None:
    names = []
    for number, content in enumerate([b"a" * 10000, b"a" * 10001, b"a" * 9999 + b"b"]):
        path = tmp_path / str(number)
        path.write_bytes(content)
        names.append(image.fingerprint(path))
    assert len(set(names)) == 3
    assert image.fingerprint(tmp_path / "0") == names[0]


def test_an_xz_archive_is_unpacked_once_and_stays_sparse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = BOOT_SECTOR + bytes(8 * 2**20)
    archive = tmp_path / "image.xz"
    archive.write_bytes(lzma.compress(content))
    unpacked = image.unpacked(archive, tmp_path / "mounted")
    assert unpacked.read_bytes() == content
    assert unpacked.stat().st_blocks * 512 < len(content) / 2
    assert image.unpacked(archive, tmp_path / "mounted") == unpacked
    assert capfd.readouterr().err.count("unpacking") == 1


def test_an_xz_archive_may_have_several_streams(tmp_path: Path) -> None:
    parts = BOOT_SECTOR + bytes(3 * 2**20), b"more" * 2**20, b"the end"
    archive = tmp_path / "image.xz"
    archive.write_bytes(b"".join(map(lzma.compress, parts)))
    assert image.unpacked(archive, tmp_path / "mounted").read_bytes() == b"".join(parts)


@pytest.mark.parametrize(
    ("content", "complaint"), [(lzma.compress(bytes(5000))[:-20], "truncated"), (b"no archive", "not an .xz file")]
)
def test_a_bad_archive_leaves_nothing_behind(tmp_path: Path, content: bytes, complaint: str) -> None:
    archive = tmp_path / "image.xz"
    archive.write_bytes(content)
    with pytest.raises(End, match=complaint):
        image.unpacked(archive, tmp_path / "mounted")
    assert list((tmp_path / "mounted").iterdir()) == []
