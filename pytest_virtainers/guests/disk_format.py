"""Disk images: known by their first bytes, and made in the store what a VM can stand on: one whole qcow2 file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

from pytest_virtainers.engine import tar
from pytest_virtainers.errors import ImageError, SpecError, StoreError
from pytest_virtainers.guests.decompress import Damaged, Unpacker
from pytest_virtainers.support.paths import cache_folder, why_unsafe
from pytest_virtainers.support.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_virtainers.store.volume import Workshop
    from pytest_virtainers.support.progress import Step

DISK = "disk.qcow2"
"""What a disk is called in its folder."""

# What `virtainer.formats` of the runtime image takes, as far as the first bytes show it.
_MAGIC = (b"QFI\xfb", b"KDMV", b"vhdxfile")  # qcow2, VMDK in one file, VHDX
_SECTOR_BYTES = 512
_BOOT_MARK = b"\x55\xaa"
"""A raw disk that boots has a boot sector, which ends so, protective ones of GPT included."""
_KINDS = "this is neither a qcow2, VMDK or VHDX image nor a raw disk with a boot sector"
_KEPT_DAYS = 14
_CHUNK_BYTES = 1024 * 1024


def downloads() -> Path:
    """Give the folder for what is on its way into the store.

    What broken downloads and killed processes have left, and nobody has gone on with for two weeks, is removed.
    Raises `SpecError` when others could change what is in it.
    """
    folder = cache_folder() / "downloads"
    folder.mkdir(mode=0o700, exist_ok=True)
    if why := why_unsafe(folder):
        raise SpecError(f"{folder}: {why}: someone else could replace the downloads in it")
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _KEPT_DAYS * 86400:
                path.unlink()
    return folder


def check_head(path: Path, name: str, *, packed: bool = False) -> None:
    """Look at the first bytes; what only the whole content shows is checked in the store.

    Args:
        path: of the file.
        name: by which messages call it.
        packed: one that `unpacked` takes is good, too.

    Raises:
        ImageError: it is not there, or no disk image.
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
    except OSError as error:
        raise ImageError(f"image {name}: it cannot be read ({error.strerror})") from error
    if not (_is_disk(head, size) or (packed and Unpacker.takes(head))):
        raise ImageError(f"image {name}: {_KINDS}")


def _is_disk(head: bytes, size: int) -> bool:
    """Tell it by the first sector."""
    return head.startswith(_MAGIC) or (size % _SECTOR_BYTES == 0 and head[510:512] == _BOOT_MARK)


@contextlib.contextmanager
def unpacked(path: Path, key: str, step: Step) -> Iterator[Path]:
    """Give a disk image, unpacked if it is packed, during the block.

    Args:
        path: of the file.
        key: of its content, for a name of what is in it; the caller sees to it that nobody else unpacks it.
        step: is told how far it is.

    Raises:
        ImageError: what is packed is damaged, or no disk image.
        StoreError: there is no room for it.
    """
    with path.open("rb") as file:
        packed = Unpacker.takes(file.read(_SECTOR_BYTES))
    if not packed:
        yield path
        return
    target = downloads() / f"{key}.disk"
    try:
        try:
            size = path.stat().st_size
            with path.open("rb") as file, target.open("wb") as out:
                unpacker = Unpacker(out.write)
                while data := file.read(_CHUNK_BYTES):
                    unpacker.write(data)
                    step.update(f"unpacking {bar(file.tell(), size)}")
                unpacker.end()
        except Damaged as error:
            raise ImageError(f"image {path}: {error}") from None
        except OSError as error:
            raise StoreError(
                f"unpacking {path} into {target.parent} failed: {error.strerror}. If room is what is missing, make "
                "some there, or set XDG_CACHE_HOME to a place that has it"
            ) from error
        check_head(target, str(path))
        yield target
    finally:
        target.unlink(missing_ok=True)


def digest(path: Path, step: Step) -> str:
    """Give the SHA-256 of a file."""
    sha, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            sha.update(data)
            step.update(bar(file.tell(), size))
    return sha.hexdigest()


def send(path: Path, name: str, shop: Workshop, out: str, step: Step) -> None:
    """Copy a disk into the folder `out` of the store; raises `StoreError`."""
    try:
        shop.container.put_archive(out, _as_tar(path, step))
    except Exception as error:
        raise StoreError(shop.explain(f"copying {name} into the store failed", str(error))) from error


def settle(name: str, sha256: str, shop: Workshop, out: str) -> dict[str, Any]:
    """Check the disk in the folder `out` of the store, make it a qcow2 file, and write its manifest.

    The work is the runtime image's (`virtainer.import_disk`), within limits on time, memory and what it writes.

    Args:
        name: by which messages and the manifest call it.
        sha256: of the disk as it came.
        shop: in which it is.
        out: the folder with `disk.qcow2`, which may be of any format until now.

    Returns:
        The manifest. In it, `sha256` is that of the disk as it came, `stored_sha256` that of the file in the store.

    Raises:
        ImageError: it is damaged, not one whole disk, or takes more work than an honest one.
        StoreError: the store cannot be written.
    """
    code, output = shop.container.run(["import-disk", out])
    if code != 0:
        raise StoreError(shop.explain(f"image {name}: looking at it failed (exit code {code})", output.decode()))
    found = json.loads(output)
    if said := found.get("refused"):
        raise ImageError(f"image {name}: it {said}")
    if said := found.get("failed"):
        raise StoreError(shop.explain(f"image {name}: it cannot be made a qcow2 image", said))
    about = {
        "format": "qcow2",
        "came_as": found["format"],
        "sha256": sha256,
        "stored_sha256": found.get("stored_sha256", sha256),
        "virtual_size": found["virtual_size"],
    }
    manifest = {"name": name, "disk": about}
    shop.container.put(out, {"manifest.json": json.dumps(manifest, indent=2).encode()})
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
