"""Guest images: what an `image` setting means, and how its disk gets into the store.

A catalogue name stands for a recipe, built inside an unprivileged container at first use, or for a disk that somebody
publishes, as a URL does: it is fetched at first use. A path is copied into the store, and so is the disk that is in a
container image. The key of a copied disk is the hash of its file or container image; that of a built one is the hash
of its recipe, that of a fetched one the hash of where it was: what comes from there on different days may differ
under one key. The digests in their manifests tell them apart.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_virtainers import checksums, contained, contexts, disks, fetch
from pytest_virtainers.catalogue import DEFAULT_USER, Entry, Published, Recipe, catalogue
from pytest_virtainers.errors import ImageError, StoreError
from pytest_virtainers.paths import locked
from pytest_virtainers.store import MOUNT

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.progress import Progress, Step
    from pytest_virtainers.store import Workshop

_NO_NAME = re.compile("[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Guest:
    """A guest image in the store.

    Attributes:
        key: its name in the store.
        user: the login user.
        digest: SHA-256 of the disk.
        firmware: from which it boots, as far as is known.
    """

    key: str
    user: str
    digest: str
    firmware: str = "bios"

    @property
    def place(self) -> str:
        """Its folder in the store."""
        return f"guests/{self.key}"

    def boots_with(self, wanted: str) -> str:
        """Give the firmware of a VM for which this one is wanted, or `auto`."""
        return self.firmware if wanted == "auto" else wanted

    @property
    def disk(self) -> str:
        """The disk's path in a container that has the store at `/store`."""
        return f"{MOUNT}/{self.place}/disk.qcow2"


def find(image: str) -> Entry | Path | str:
    """Tell what an `image` setting means: an entry of the catalogue, a URL, or a disk image on this machine.

    Text is the name of a container image with a disk in it.

    Raises:
        ImageError: none of them; or the path is not that of a disk image.
    """
    known = catalogue()
    if image in known:
        return known[image]
    if image.startswith(contained.SCHEME):
        return image.removeprefix(contained.SCHEME)
    if "://" in image:
        url, digest = fetch.split(image)
        return Published(_NO_NAME.sub("-", url.rpartition("/")[2])[:60] or "image", DEFAULT_USER, url, digest)
    path = Path(image)
    if "/" not in image and not path.exists():
        near = difflib.get_close_matches(image, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        names = ", ".join(sorted({each.name for each in known.values()}))
        raise ImageError(
            f"no guest image is called {image!r}; {hint}the catalogue has {names}; a path, a URL "
            "or docker-image://NAME works, too"
        )
    disks.check_head(path, str(path), packed=True)
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
    if isinstance(found, str):
        return _ensure_taken_out(found, shop, progress)
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
            ["/recipe/build", entry.suite, out, *([entry.flavour] if entry.flavour else [])],
            lambda piece: step.update(_last_line(piece)),
        )
        if code != 0:
            raise ImageError(
                shop.explain(
                    f"building guest image {entry.name} failed (exit code {code}); it needs a Debian mirror, reached "
                    "from containers, and about 3 GiB of room in the store. The build's last lines",
                    output.decode(errors="replace"),
                )
            )


def _ensure_fetched(entry: Published, shop: Workshop, progress: Progress) -> Guest:
    manifest = _once(
        entry.key, f"fetching {entry.name}", shop, progress, lambda _place, step: _fetch(entry, shop, step)
    )
    return Guest(entry.key, entry.user, manifest["disk"]["sha256"], entry.firmware)


def _fetch(entry: Published, shop: Workshop, step: Step) -> dict[str, Any]:
    folder = disks.downloads()
    disk, digest = folder / entry.key, entry.digest
    try:
        if entry.checksums is not None:
            name = entry.url.rpartition("/")[2]
            digest = checksums.published(entry.checksums, name, folder / f"{entry.key}.sums", step.update)
        sha256 = fetch.fetch(entry.url, digest, disk, step.update)
        disks.check_head(disk, entry.url)
        with locked("store"), shop.new(entry.place) as out:
            disks.send(disk, entry.url, shop, out, step)
            return disks.settle(entry.url, sha256, shop, out)
    finally:
        disk.unlink(missing_ok=True)


def _ensure_copied(path: Path, shop: Workshop, progress: Progress) -> Guest:
    with progress.step(f"reading {path.name}") as step:
        digest = disks.digest(path, step)
    key = f"file-{digest[:16]}"

    def copy(place: str, step: Step) -> dict[str, Any]:
        with disks.unpacked(path, key, step) as disk:
            sha256 = digest if disk == path else disks.digest(disk, step)
            with locked("store"), shop.new(place) as out:
                disks.send(disk, str(path), shop, out, step)
                return disks.settle(str(path), sha256, shop, out)

    manifest = _once(key, f"copying {path.name} into the store", shop, progress, copy)
    return Guest(key, DEFAULT_USER, manifest["disk"]["sha256"])


def _ensure_taken_out(reference: str, shop: Workshop, progress: Progress) -> Guest:
    with progress.step(f"looking for image {reference}") as step:
        prepared = contained.look(shop.engine, reference, step.update)
    key, name = f"image-{prepared.digest[:16]}", f"{contained.SCHEME}{reference}"

    def take_out(place: str, _step: Step) -> dict[str, Any]:
        with locked("store"), shop.new(place) as out:
            return disks.settle(name, contained.take_out(prepared, shop, out), shop, out)

    manifest = _once(key, f"copying the disk in {reference} into the store", shop, progress, take_out)
    return Guest(key, prepared.user or DEFAULT_USER, manifest["disk"]["sha256"], prepared.firmware)


def _once(
    key: str, title: str, shop: Workshop, progress: Progress, make: Callable[[str, Step], dict[str, Any]]
) -> dict[str, Any]:
    """Give the manifest of the guest image with this key; if the store has none, `make` makes it, and gives that."""
    place = f"guests/{key}"
    manifest = shop.manifest(place)
    if manifest is None:
        with (
            progress.step(title) as step,
            locked(f"image-{key}", lambda: step.update("another process does")),
        ):
            manifest = shop.manifest(place) or make(place, step)
    return manifest


def _last_line(piece: bytes) -> str:
    lines = piece.decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")
