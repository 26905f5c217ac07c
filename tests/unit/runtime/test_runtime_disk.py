"""When an overlay is used again, and when it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from virtainer import disk
from virtainer.image import Base

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = Base(Path("/image"), "qcow2", size=2 * 2**30, fingerprint="cafe")
OVERLAY: dict[str, Any] = {"format": "qcow2", "virtual-size": 40 * 2**30, "format-specific": {"data": {}}}


@pytest.mark.parametrize("made_on", ["cafe", None])
def test_an_overlay_of_this_guest_disk_is_used_again(made_on: str | None) -> None:
    assert disk.objection(OVERLAY, BASE, made_on) is None


@pytest.mark.parametrize(
    ("said", "made_on", "complaint"),
    [
        ({}, "beef", "was made on another guest disk (beef) than /image (cafe)"),
        ({"virtual-size": 2**30}, None, "is smaller than /image"),
        ({"format": "raw"}, "cafe", "is raw, not qcow2"),
        ({"format-specific": {"data": {"data-file": "/etc/shadow"}}}, "cafe", "keeps its data in another file"),
    ],
)
def test_an_overlay_of_another_guest_disk_is_refused(
    said: dict[str, Any], made_on: str | None, complaint: str
) -> None:
    assert (disk.objection(OVERLAY | said, BASE, made_on) or "").startswith(complaint)


def test_an_overlay_names_the_guest_disk_as_others_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").symlink_to("guests/disk.qcow2")
    done: list[tuple[str, ...]] = []

    def start(*argv: str) -> Callable[[], str]:
        done.append(argv)
        Path(argv[-2]).touch()
        return str

    monkeypatch.setattr(disk, "start", start)
    base = Base(tmp_path / "image", "qcow2", size=2**30, fingerprint="cafe")
    made = disk.overlay(base, tmp_path / "mounted", size=2**31)
    assert not (tmp_path / "mounted/local_image.qcow2").exists()
    assert made().exists()
    assert done[0][done[0].index("-b") + 1] == str(tmp_path / "guests/disk.qcow2")
    assert done[0][-1] == str(2**31)
