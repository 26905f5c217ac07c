"""Formats by the headers of disks, and disks that are refused before QEMU's tools open them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtainer import formats

from pytest_virtainers.guests import import_disk
from tests.unit.runtime.hostile_disks import REFUSED, TAKEN, Disk, vmdk

if TYPE_CHECKING:
    from pathlib import Path


def inspect(path: Path, content: bytes) -> formats.Disk:
    path.write_bytes(content)
    with path.open("rb") as file:
        return formats.inspect(file)


@pytest.mark.parametrize("disk", REFUSED, ids=lambda disk: disk.name)
def test_disks_with_references_and_other_files_are_refused(tmp_path: Path, disk: Disk) -> None:
    with pytest.raises(formats.Unusable) as caught:
        inspect(tmp_path / "disk", disk.content)
    assert disk.words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("disk", TAKEN, ids=lambda disk: disk.name)
def test_honest_disks_are_accepted(tmp_path: Path, disk: Disk) -> None:
    found = inspect(tmp_path / "disk", disk.content)
    assert found.size == (len(disk.content) if found.format == "raw" else 2**20)


def test_the_header_determines_the_format(tmp_path: Path) -> None:
    found = {disk.name: inspect(tmp_path / "disk", disk.content).format for disk in TAKEN}
    assert found == {
        "plain": "qcow2",
        "of-version-2": "qcow2",
        "with-features": "qcow2",
        "plain-vmdk": "vmdk",
        "stream": "vmdk",
        "plain-vhdx": "vhdx",
        "raw": "raw",
        "gpt": "raw",
    }


def test_a_vmdk_with_its_directory_at_the_end_is_accepted(tmp_path: Path) -> None:
    footer = vmdk()[:512] + bytes(512)
    assert inspect(tmp_path / "disk", vmdk(directory=2**64 - 1, end=footer)).format == "vmdk"


@pytest.mark.parametrize("disk", TAKEN, ids=lambda disk: disk.name)
def test_the_plugin_accepts_the_same_disks_before_copying(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(disk.content)
    import_disk.check_head(tmp_path / "disk", "x")


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """Return an honest or hostile disk with changes, mostly in the header, or truncated."""
    content = bytearray(draw(st.sampled_from([*TAKEN, *REFUSED])).content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.one_of(st.integers(0, 128), st.integers(0, 600), st.integers(0, len(content))))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([bytes(8), b"\xff" * 8])))
        content[at : at + len(piece)] = piece
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


@given(content=changed())
def test_no_header_breaks_the_reader_or_keeps_it_busy(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, began = tmp_path_factory.getbasetemp() / "changed", time.process_time()
    try:
        found = inspect(path, content)
    except formats.Unusable as refusal:
        said = str(refusal)
    else:
        said = found.format
        assert 0 < found.size <= formats.MOST_BYTES
    assert said.isprintable()
    assert time.process_time() - began < 0.5
