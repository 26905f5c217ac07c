"""Guest images: what an `image` setting means, and how its disk gets into the store.

A catalogue name stands for a recipe, built inside an unprivileged container at first use; a path is copied into the
store. The key of a copied disk is the hash of its content. That of a built one is the hash of its recipe: the
packages come from a live mirror, so disks built on different days may differ under one key. The digests in their
manifests tell them apart.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers import contexts
from pytest_virtainers.errors import ImageError, StoreError
from pytest_virtainers.paths import locked
from pytest_virtainers.store import MOUNT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_virtainers.progress import Progress, Step
    from pytest_virtainers.store import Workshop

DEFAULT_USER = "tester"
"""The account made in guests whose image is given by path."""

_QCOW2_MAGIC = b"QFI\xfb"
_SECTOR_BYTES = 512
_CHUNK_BYTES = 1024 * 1024
_LEAKS = 3  # exit code of `qemu-img check`: unused clusters, but nothing wrong


@dataclass(frozen=True)
class Entry:
    """A catalogue entry: the login user and the recipe that makes the disk."""

    name: str
    user: str
    recipe: str
    suite: str
    aliases: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Where its disk is in the store; changes whenever the recipe does, not when the mirror's packages do."""
        return f"{self.name}-{contexts.digest(self.recipe)}"

    @property
    def place(self) -> str:
        """Its folder in the store."""
        return f"guests/{self.key}"


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


@functools.cache
def catalogue() -> Mapping[str, Entry]:
    """Read the catalogue; each entry stands under its name and its aliases."""
    found = {}
    for name, facts in tomllib.loads((Path(__file__).parent / "catalogue.toml").read_text()).items():
        entry = Entry(name, facts["user"], facts["recipe"], facts["suite"], tuple(facts["aliases"]))
        found.update(dict.fromkeys((name, *entry.aliases), entry))
    return found


def find(image: str) -> Entry | Path:
    """Tell what an `image` setting means: an entry of the catalogue, or a disk image on this machine.

    Raises:
        ImageError: neither; or the path is not that of a disk image.
    """
    entry = catalogue().get(image)
    if entry is not None:
        return entry
    if "://" in image:
        raise ImageError(f"image {image!r}: images cannot be fetched by URL yet; download it and give its path")
    path = Path(image)
    if "/" not in image and not path.exists():
        near = difflib.get_close_matches(image, catalogue(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(sorted({each.name for each in catalogue().values()}))
        raise ImageError(f"no guest image is called {image!r}; {hint}the catalogue has {known}; a path works too")
    _check_disk(path)
    return path


def ensure(image: str, shop: Workshop, progress: Progress) -> Guest:
    """Bring the disk that `image` means into the store, unless it is there.

    Raises:
        ImageError: it cannot be found, read or built.
        StoreError: the store cannot be written.
    """
    found = find(image)
    if isinstance(found, Entry):
        return ensure_built(found, shop, progress)
    return _ensure_copied(found, shop, progress)


def ensure_built(entry: Entry, shop: Workshop, progress: Progress) -> Guest:
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


def build(entry: Entry, shop: Workshop, progress: Progress) -> None:
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


def _check_disk(path: Path) -> None:
    """Look at the file's head; what only its whole content shows is checked in the store."""
    if not path.exists():
        raise ImageError(f"image {path}: there is no such file")
    if not path.is_file():
        raise ImageError(f"image {path}: this is a directory, not a disk image")
    size = path.stat().st_size
    if size == 0:
        raise ImageError(f"image {path}: the file is empty")
    try:
        with path.open("rb") as file:
            head = file.read(_SECTOR_BYTES)
    except OSError as error:
        raise ImageError(f"image {path}: it cannot be read ({error.strerror})") from error
    # A raw disk that boots has a boot sector, which ends with this mark, protective ones of GPT included.
    is_raw = size % _SECTOR_BYTES == 0 and head[-2:] == b"\x55\xaa"
    if not head.startswith(_QCOW2_MAGIC) and not is_raw:
        raise ImageError(f"image {path}: this is neither a qcow2 image nor a raw disk with a boot sector")


def _ensure_copied(path: Path, shop: Workshop, progress: Progress) -> Guest:
    with progress.step(f"reading {path.name}") as step:
        digest = _sha256(path, step)
    guest = Guest(f"file-{digest[:16]}", DEFAULT_USER, digest)
    if shop.manifest(guest.place) is None:
        with locked("store"):
            if shop.manifest(guest.place) is None:
                with progress.step(f"copying {path.name} into the store") as step, shop.new(guest.place) as out:
                    _copy(path, digest, shop, out, step)
    return guest


def _copy(path: Path, digest: str, shop: Workshop, out: str, step: Step) -> None:
    try:
        shop.container.put_archive(out, _as_tar(path, step))
    except Exception as error:
        raise StoreError(shop.explain(f"copying {path} into the store failed", str(error))) from error
    code, output = shop.container.run(["qemu-img", "info", "--output=json", f"{out}/disk.qcow2"])
    facts = json.loads(output) if code == 0 else {}
    if facts.get("backing-filename"):
        raise ImageError(
            f"image {path}: it is an overlay of {facts['backing-filename']}; make it whole first: "
            f"qemu-img convert -O qcow2 {path} whole.qcow2"
        )
    if facts.get("format") == "qcow2":
        code, output = shop.container.run(["qemu-img", "check", "-q", f"{out}/disk.qcow2"])
    if code not in (0, _LEAKS):
        raise ImageError(
            shop.explain(f"image {path}: the disk is damaged or cut short; qemu-img says", output.decode())
        )
    disk = {"format": facts["format"], "sha256": digest, "virtual_size": facts["virtual-size"]}
    manifest = {"name": path.name, "disk": disk}
    shop.container.put(out, {"manifest.json": json.dumps(manifest, indent=2).encode()})


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
