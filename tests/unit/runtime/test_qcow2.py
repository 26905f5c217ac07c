"""Headers of untrusted qcow2 files: which are accepted, and which are refused."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtainer import qcow2

from tests.unit.fake_qcow2 import extension, head

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30


FORMAT = extension(0xE2792ACA, b"qcow2")


@pytest.mark.parametrize("version", [2, 3])
def test_headers_of_overlays_from_qemu_are_read(version: int) -> None:
    header = qcow2.parse(head(version=version, extensions=FORMAT, snapshots=2))
    assert header == qcow2.Header(GIB, "/store/guests/debian/disk.qcow2", 2)
    assert qcow2.parse(head(version=version, backing=b"")).backing == ""


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (b"", "is not qcow2"),
        (b"QFI\xfb", "is cut short within its header"),
        (head()[:80], "is cut short within its header"),
        (head(magic=b"KDMV"), "is not qcow2"),
        (head(version=4), "is qcow2 of version 4, not of 2 or 3"),
        (head(encryption=2), "is encrypted"),
        (head(incompatible=0b100), "keeps its data in another file"),
        (head(incompatible=1 << 60), "needs features that are not known (incompatible bits 0x1000000000000000)"),
        (head(extensions=FORMAT + extension(0x44415441, b"/store/x")), "names another file for its data"),
        (head(version=2, extensions=extension(0x44415441, b"/store/x")), "names another file for its data"),
        (head(extensions=extension(0x0537BE77, bytes(16))), "is encrypted"),
        (head(extensions=extension(1, b"", length=2**31)), "has a header extension that is longer than its header"),
        (head(cluster_bits=8), "has clusters of 2^8 bytes, not of 2^9 to 2^21"),
        (head(cluster_bits=2**31), f"has clusters of 2^{2**31} bytes, not of 2^9 to 2^21"),
        (head(size=0), "is a disk of 0 bytes, not of 1 to 2^50"),
        (head(size=2**51), f"is a disk of {2**51} bytes, not of 1 to 2^50"),
        (head(l1_size=2**31), "has tables that are larger than QEMU takes"),
        (head(counts=2**31), "has tables that are larger than QEMU takes"),
        (head(snapshots=2**31), "has tables that are larger than QEMU takes"),
        (head(l1_at=7), "has tables that do not start at a cluster"),
        (head(length=8), "has a header of 8 bytes"),
        (head(length=2**30), f"has a header of {2**30} bytes"),
        (head(backing=b"x" * 1024), "has the name of a backing file outside of its header"),
        (head(name_at=2**62), "has the name of a backing file outside of its header"),
    ],
)
def test_invalid_headers_and_references_to_other_files_are_refused(made: bytes, complaint: str) -> None:
    assert qcow2.complaint(made) == complaint


def test_a_data_file_after_other_extensions_is_found() -> None:
    many = b"".join(extension(number, bytes(number)) for number in range(1, 40))
    assert qcow2.complaint(head(extensions=many, backing=b"")) is None
    assert qcow2.complaint(head(extensions=many + extension(0x44415441, b"x"), backing=b"")) is not None


@given(st.binary(max_size=300), st.integers(0, 160))
def test_any_header_is_read_or_refused(noise: bytes, at: int) -> None:
    made = head(extensions=FORMAT)
    qcow2.complaint(made[:at] + noise + made[at + len(noise) :])
    qcow2.complaint(b"QFI\xfb" + noise)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="without qemu-img")
def test_files_of_qemu_img_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for options in ("compat=0.10", "compat=1.1", "extended_l2=on", "cluster_size=2M", "compression_type=zstd"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), "5G"], check=True)
        assert qcow2.parse(path.read_bytes()[: qcow2.HEAD_BYTES]) == qcow2.Header(5 * GIB, "", 0)
