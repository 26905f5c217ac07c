"""Disks on their way into the store: decompressed, checked, and described in a manifest."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pytest_virtainers.errors import ImageError, StoreError
from pytest_virtainers.guests import download, import_disk
from pytest_virtainers.store.volume import OpenStore
from pytest_virtainers.support.progress import Progress
from tests.unit.memory_engine import MemoryContainer, MemoryEngine


def test_a_compressed_disk_is_decompressed_temporarily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compressed = tmp_path / "a.qcow2.gz"
    compressed.write_bytes(gzip.compress(b"QFI\xfb" + bytes(100)))
    with Progress(lambda _text: None, live=False).step("copying") as step:
        with import_disk.decompressed(compressed, "a", step) as disk:
            assert disk.read_bytes() == b"QFI\xfb" + bytes(100)
        assert list(download.folder().iterdir()) == []
        compressed.write_bytes(compressed.read_bytes()[:-10])
        with (
            pytest.raises(ImageError, match="its gzip data is truncated"),
            import_disk.decompressed(compressed, "a", step),
        ):
            pass
        compressed.write_bytes(gzip.compress(b"not a disk" * 100))
        with pytest.raises(ImageError, match="this is neither"), import_disk.decompressed(compressed, "a", step):
            pass
    assert list(download.folder().iterdir()) == []


def copied(tmp_path: Path, **answer: object) -> dict[str, Any]:
    """Copy a disk for which the helper prints this answer; return the disk's entry in the manifest."""
    (tmp_path / "a.qcow2").write_bytes(b"QFI\xfb")
    helper = MemoryContainer(answer=lambda _command: (0, json.dumps(answer).encode()))
    store = OpenStore(MemoryEngine(), helper, "a-store")
    with Progress(lambda _text: None, live=False).step("copying") as step:
        import_disk.send(tmp_path / "a.qcow2", "a.qcow2", store, "/store/.scratch", step)
    import_disk.settle("a.qcow2", "0123", store, "/store/.scratch")
    assert helper.commands == [["import-disk", "/store/.scratch"]]
    disk: dict[str, Any] = json.loads(helper.read("/store/.scratch/manifest.json"))["disk"]
    return disk


def test_the_manifest_has_digests_of_the_original_and_the_stored_disk(tmp_path: Path) -> None:
    found = copied(tmp_path, format="qcow2", virtual_size=1024)
    assert (found["sha256"], found["stored_sha256"], found["came_as"]) == ("0123", "0123", "qcow2")
    found = copied(tmp_path, format="raw", virtual_size=1024, stored_sha256="4567")
    assert (found["sha256"], found["stored_sha256"], found["came_as"]) == ("0123", "4567", "raw")


def test_a_refused_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^image a\.qcow2: it is an overlay of /etc/shadow: make it whole first$"):
        copied(tmp_path, refused="is an overlay of /etc/shadow: make it whole first")


def test_a_full_store_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"it cannot be converted to qcow2:(?s:.)*the store \(a-store\) is full"):
        copied(tmp_path, failed="qemu-img convert failed (1): No space left on device")
