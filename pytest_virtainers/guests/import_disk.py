"""Import a disk image into the store: recognized by its first bytes, stored as one self-contained qcow2 file."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from pytest_virtainers.engine import tar
from pytest_virtainers.errors import ImageError, StoreError
from pytest_virtainers.guests import download
from pytest_virtainers.guests.decompress import Damaged, decompress, is_compressed
from pytest_virtainers.support.progress import bar
from pytest_virtainers.support.runtime_modules import protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_virtainers.store.volume import OpenStore
    from pytest_virtainers.support.progress import Step

DISK = "disk.qcow2"
"""The name of a disk in its folder."""

_SECTOR_BYTES = 512
_NOT_A_DISK = "this is neither a qcow2, VMDK or VHDX image nor a raw disk with a boot sector"
_CHUNK_BYTES = 1024 * 1024


def check_head(path: Path, name: str, *, compressed: bool = False) -> None:
    """Check the first bytes of a disk image; the store checks the rest.

    Args:
        path: the file.
        name: its name in messages.
        compressed: accept compressed files.

    Raises:
        ImageError: the file does not exist or is not a disk image.
    """
    if not path.exists():
        raise ImageError(f"image {name}: there is no such file")
    if not path.is_file():
        raise ImageError(f"image {name}: this is a directory, not a disk image")
    size = path.stat().st_size
    if size == 0:
        raise ImageError(f"image {name}: the file is empty")
    try:
        with path.open("rb") as file:
            head = file.read(_SECTOR_BYTES)
        if not (_is_disk(head, size) or (compressed and is_compressed(path))):
            raise ImageError(f"image {name}: {_NOT_A_DISK}")
    except OSError as error:
        raise ImageError(f"image {name}: it cannot be read ({error.strerror})") from error


def _is_disk(head: bytes, size: int) -> bool:
    """Return whether the first sector is that of a disk image."""
    known = (protocol.QCOW2, protocol.VMDK, protocol.VHDX)
    return head.startswith(known) or (size % _SECTOR_BYTES == 0 and head[510:512] == protocol.BOOT_MARK)


@contextlib.contextmanager
def decompressed(path: Path, key: str, step: Step) -> Iterator[Path]:
    """Return a disk image for the block, decompressed into a temporary file if it is compressed.

    Args:
        path: the file.
        key: of its content, which names the temporary file; the caller must prevent a second use of it.
        step: shows the progress.

    Raises:
        ImageError: the compressed data is damaged, or not a disk image.
        StoreError: there is not enough space for it.
    """
    if not is_compressed(path):
        yield path
        return
    target = download.folder() / f"{key}.disk"
    try:
        try:
            decompress(path, target, step.update)
        except Damaged as error:
            raise ImageError(f"image {path}: {error}") from None
        except OSError as error:
            raise StoreError(
                f"decompressing {path} into {target.parent} failed: {error.strerror}. If the disk is full, free "
                "space there, or set XDG_CACHE_HOME to a folder with enough space"
            ) from error
        check_head(target, str(path))
        yield target
    finally:
        target.unlink(missing_ok=True)


def send(path: Path, name: str, store: OpenStore, out: str, step: Step) -> None:
    """Copy a disk into the folder `out` of the store; raise `StoreError` on failure."""
    try:
        store.container.put_archive(out, _as_tar(path, step))
    except Exception as error:
        raise StoreError(store.explain(f"copying {name} into the store failed", str(error))) from error


def settle(name: str, sha256: str, store: OpenStore, out: str) -> dict[str, Any]:
    """Check the disk in the folder `out` of the store, convert it to qcow2 if necessary, and write its manifest.

    The runtime image (`virtainer.import_disk`) does the work, with limits on time, memory and written bytes.

    Args:
        name: of the disk in messages and in the manifest.
        sha256: of the original disk.
        store: the store.
        out: the folder with `disk.qcow2`, which may have any accepted format.

    Returns:
        The manifest. `sha256` is the digest of the original disk, `stored_sha256` that of the file in the store.

    Raises:
        ImageError: the disk is damaged, needs other files, or exceeds a limit.
        StoreError: the store cannot be written.
    """
    code, output = store.container.run(["import-disk", out])
    if code != 0:
        raise StoreError(store.explain(f"image {name}: examining it failed (exit code {code})", output.decode()))
    found = json.loads(output)
    if reason := found.get("refused"):
        raise ImageError(f"image {name}: it {reason}")
    if reason := found.get("failed"):
        raise StoreError(store.explain(f"image {name}: it cannot be converted to qcow2", reason))
    disk = {
        "format": "qcow2",
        "came_as": found["format"],
        "sha256": sha256,
        "stored_sha256": found.get("stored_sha256", sha256),
        "virtual_size": found["virtual_size"],
    }
    manifest = {"name": name, "disk": disk}
    store.container.put(out, {"manifest.json": json.dumps(manifest, indent=2).encode()})
    return manifest


def _as_tar(path: Path, step: Step) -> Iterator[bytes]:
    """Stream one large file as tar, without a copy of it."""
    yield from tar.large_entry(DISK, _content(path, step), path.stat().st_size)
    yield tar.END


def _content(path: Path, step: Step) -> Iterator[bytes]:
    sent, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            sent += len(data)
            step.update(f"storing {bar(sent, size)}")
            yield data
