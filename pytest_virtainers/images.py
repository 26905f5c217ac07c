"""Guest images: what an `image` setting means, and how its disk gets into the store.

A catalogue name stands for a recipe, built inside an unprivileged container at first use, or for a disk that somebody
publishes, as a URL does: it is fetched at first use. A path is copied into the store. The key of a copied disk is the
hash of its content; that of a built one is the hash of its recipe, that of a fetched one the hash of where it was:
what comes from there on different days may differ under one key. The digests in their manifests tell them apart.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_virtainers import checksums, contexts, fetch
from pytest_virtainers.catalogue import DEFAULT_USER, Entry, Published, Recipe, catalogue
from pytest_virtainers.errors import ImageError, StoreError
from pytest_virtainers.paths import cache_folder, locked
from pytest_virtainers.store import MOUNT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_virtainers.progress import Progress, Step
    from pytest_virtainers.store import Workshop

_QCOW2_MAGIC = b"QFI\xfb"
_SECTOR_BYTES = 512
_CHUNK_BYTES = 1024 * 1024
_NO_NAME = re.compile("[^A-Za-z0-9._-]")
_LEAKS = 3  # exit code of `qemu-img check`: unused clusters, but nothing wrong


@dataclass(frozen=True)
class Guest:
    """A guest image in the store.

    Attributes:
        key: its name in the store.
        user: the login user.
        digest: SHA-256 of the disk.
    """

    key: str
    user: str
    digest: str

    @property
    def place(self) -> str:
        """Its folder in the store."""
        return f"guests/{self.key}"

    @property
    def disk(self) -> str:
        """The disk's path in a container that has the store at `/store`."""
        return f"{MOUNT}/{self.place}/disk.qcow2"


def find(image: str) -> Entry | Path:
    """Tell what an `image` setting means: an entry of the catalogue, a URL, or a disk image on this machine.

    Raises:
        ImageError: none of them; or the path is not that of a disk image.
    """
    known = catalogue()
    if image in known:
        return known[image]
    if "://" in image:
        url, digest = fetch.split(image)
        return Published(_NO_NAME.sub("-", url.rpartition("/")[2])[:60] or "image", DEFAULT_USER, url, digest)
    path = Path(image)
    if "/" not in image and not path.exists():
        near = difflib.get_close_matches(image, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        names = ", ".join(sorted({each.name for each in known.values()}))
        raise ImageError(
            f"no guest image is called {image!r}; {hint}the catalogue has {names}; a path or URL works too"
        )
    _check_disk(path, str(path))
    return path


def ensure(image: str, shop: Workshop, progress: Progress) -> Guest:
    """Bring the disk that `image` means into the store, unless it is there.

    Raises:
        ImageError: it cannot be found, read, fetched or built.
        StoreError: the store cannot be written.
    """
    found = find(image)
    if isinstance(found, Recipe):
        return ensure_built(found, shop, progress)
    if isinstance(found, Published):
        return _ensure_fetched(found, shop, progress)
    return _ensure_copied(found, shop, progress)


def ensure_built(entry: Recipe, shop: Workshop, progress: Progress) -> Guest:
    """Build the disk of a catalogue entry unless the store has it; raises as `ensure` does."""
    manifest = shop.manifest(entry.place)
    if manifest is None:
        with locked("store"):
            manifest = shop.manifest(entry.place)  # another process may have built it meanwhile
            if manifest is None:
                build(entry, shop, progress)
                manifest = shop.manifest(entry.place)
    if manifest is None:
        raise StoreError(f"{entry.key} was built, but the store does not show it")
    return Guest(entry.key, entry.user, manifest["disk"]["sha256"])


def build(entry: Recipe, shop: Workshop, progress: Progress) -> None:
    """Build the disk of a catalogue entry into the store; hold the lock `store`; raises as `ensure` does."""
    with (
        progress.step(f"building guest image {entry.name} from Debian's packages") as step,
        shop.new(entry.place) as out,
    ):
        shop.container.put_archive("/", contexts.archive(entry.recipe, into="recipe/"))
        code, output = shop.container.run(
            ["/recipe/build", entry.suite, out], lambda piece: step.update(_last_line(piece))
        )
        if code != 0:
            raise ImageError(
                shop.explain(
                    f"building guest image {entry.name} failed (exit code {code}); it needs a Debian mirror, reached "
                    "from containers, and about 3 GiB of room in the store. The build's last lines",
                    output.decode(errors="replace"),
                )
            )


def _check_disk(path: Path, name: str) -> None:
    """Look at the file's head; what only its whole content shows is checked in the store."""
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
    # A raw disk that boots has a boot sector, which ends with this mark, protective ones of GPT included.
    is_raw = size % _SECTOR_BYTES == 0 and head[-2:] == b"\x55\xaa"
    if not head.startswith(_QCOW2_MAGIC) and not is_raw:
        raise ImageError(f"image {name}: this is neither a qcow2 image nor a raw disk with a boot sector")


def _ensure_fetched(entry: Published, shop: Workshop, progress: Progress) -> Guest:
    manifest = shop.manifest(entry.place)
    if manifest is None:
        with (
            progress.step(f"fetching {entry.name}") as step,
            locked(f"fetch-{entry.key}", lambda: step.update("another process does")),
        ):
            manifest = shop.manifest(entry.place) or _fetch(entry, shop, step)
    return Guest(entry.key, entry.user, manifest["disk"]["sha256"])


def _fetch(entry: Published, shop: Workshop, step: Step) -> dict[str, Any]:
    folder = cache_folder() / "downloads"
    folder.mkdir(mode=0o700, exist_ok=True)
    disk, digest = folder / entry.key, entry.digest
    try:
        if entry.checksums is not None:
            name = entry.url.rpartition("/")[2]
            digest = checksums.published(entry.checksums, name, folder / f"{entry.key}.sums", step.update)
        sha256 = fetch.fetch(entry.url, digest, disk, step.update)
        _check_disk(disk, entry.url)
        with locked("store"), shop.new(entry.place) as out:
            return _copy(_File(disk, entry.url, sha256), shop, out, step)
    finally:
        disk.unlink(missing_ok=True)


def _ensure_copied(path: Path, shop: Workshop, progress: Progress) -> Guest:
    with progress.step(f"reading {path.name}") as step:
        digest = _sha256(path, step)
    guest = Guest(f"file-{digest[:16]}", DEFAULT_USER, digest)
    if shop.manifest(guest.place) is None:
        with locked("store"):
            if shop.manifest(guest.place) is None:
                with progress.step(f"copying {path.name} into the store") as step, shop.new(guest.place) as out:
                    _copy(_File(path, str(path), digest), shop, out, step)
    return guest


@dataclass(frozen=True)
class _File:
    """A disk image on this machine: where it is, what it is called in messages, and its digest."""

    path: Path
    name: str
    sha256: str


def _copy(file: _File, shop: Workshop, out: str, step: Step) -> dict[str, Any]:
    """Copy a disk into the folder `out` of the store, and look at it there; return its manifest."""
    try:
        shop.container.put_archive(out, _as_tar(file.path, step))
    except Exception as error:
        raise StoreError(shop.explain(f"copying {file.name} into the store failed", str(error))) from error
    code, output = shop.container.run(["qemu-img", "info", "--output=json", f"{out}/disk.qcow2"])
    facts = json.loads(output) if code == 0 else {}
    backing, data = facts.get("backing-filename"), facts.get("format-specific", {}).get("data", {}).get("data-file")
    if backing or data:
        what = f"it is an overlay of {backing}" if backing else f"its data is in another file, {data}"
        raise ImageError(
            f"image {file.name}: {what}; make it whole first: qemu-img convert -O qcow2 {file.path.name} whole.qcow2"
        )
    if facts.get("format") == "qcow2":
        code, output = shop.container.run(["qemu-img", "check", "-q", f"{out}/disk.qcow2"])
    if code not in (0, _LEAKS):
        raise ImageError(
            shop.explain(f"image {file.name}: the disk is damaged or cut short; qemu-img says", output.decode())
        )
    disk = {"format": facts["format"], "sha256": file.sha256, "virtual_size": facts["virtual-size"]}
    manifest = {"name": file.name, "disk": disk}
    shop.container.put(out, {"manifest.json": json.dumps(manifest, indent=2).encode()})
    return manifest


def _as_tar(path: Path, step: Step) -> Iterator[bytes]:
    """Stream one large file as tar, without a copy of it."""
    size, sent = path.stat().st_size, 0
    entry = tarfile.TarInfo("disk.qcow2")
    entry.size = size
    yield entry.tobuf(tarfile.GNU_FORMAT)
    with path.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            sent += len(data)
            step.update(f"{sent // _CHUNK_BYTES} of {size // _CHUNK_BYTES} MiB")
            yield data
    yield bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def _sha256(path: Path, step: Step) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            sha.update(data)
            step.update(f"{file.tell() // _CHUNK_BYTES} MiB")
    return sha.hexdigest()


def _last_line(piece: bytes) -> str:
    lines = piece.decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")
