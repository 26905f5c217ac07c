"""Overlays that are used again, and those that are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from virtainer import overlay
from virtainer.exit_reasons import End
from virtainer.guest_disk import Base
from virtainer.qcow2 import Header

from tests.unit.fake_qcow2 import extension, head

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = Base(Path("/image"), "qcow2", size=2 * 2**30, fingerprint="cafe")
OVERLAY = Header(40 * 2**30, "/image", 0)


@pytest.mark.parametrize("made_on", ["cafe", None])
def test_an_overlay_of_this_guest_disk_is_used_again(made_on: str | None) -> None:
    assert overlay.objection(OVERLAY, BASE, made_on) is None


@pytest.mark.parametrize(
    ("header", "made_on", "complaint"),
    [
        (OVERLAY, "beef", "was made on another guest disk (beef) than /image (cafe)"),
        (OVERLAY._replace(size=2**30), None, "is smaller than /image"),
    ],
)
def test_an_overlay_of_another_guest_disk_is_refused(header: Header, made_on: str | None, complaint: str) -> None:
    assert (overlay.objection(header, BASE, made_on) or "").startswith(complaint)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"KDMV", "is not qcow2"),
        (head(incompatible=4, size=2**32), "keeps its data in another file"),
        (
            head(extensions=extension(0x44415441, b"/store/manifest.json"), size=2**32),
            "names another file for its data",
        ),
        (None, "is not a regular file"),
    ],
)
def test_an_overlay_that_names_other_files_is_refused_before_qemu_opens_it(
    content: bytes | None, fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # nothing can be run
    path = tmp_path / "local_image.qcow2"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(End, match=rf"^the overlay {path} {fact}: remove it, or give this VM another IMAGE_DIR$"):
        overlay.prepare(BASE, tmp_path, size=2**31)


def test_an_overlay_has_the_resolved_path_of_the_guest_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").symlink_to("guests/disk.qcow2")
    done: list[tuple[str, ...]] = []

    def start(*argv: str) -> Callable[[], str]:
        done.append(argv)
        Path(argv[-2]).touch()
        return str

    monkeypatch.setattr(overlay, "start", start)
    base = Base(tmp_path / "image", "qcow2", size=2**30, fingerprint="cafe")
    made = overlay.prepare(base, tmp_path / "mounted", size=2**31)
    assert not (tmp_path / "mounted/local_image.qcow2").exists()
    assert made().exists()
    assert done[0][done[0].index("-b") + 1] == str(tmp_path / "guests/disk.qcow2")
    assert done[0][-1] == str(2**31)
