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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config.architecture import FIRMWARE, USUAL
from pytest_virtainers.engine import build_context, tar
from pytest_virtainers.errors import ImageError, StoreError
from pytest_virtainers.guests import checksums, container_disk, disk_format, download
from pytest_virtainers.guests.catalogue import DEFAULT_USER, Entry, Published, Recipe, catalogue
from pytest_virtainers.store.places import MOUNT
from pytest_virtainers.support.paths import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_virtainers.store.volume import Workshop
    from pytest_virtainers.support.progress import Progress, Step

_NO_NAME = re.compile("[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Guest:
    """A guest image in the store.

    Attributes:
        key: its name in the store.
        user: the login user.
        digest: SHA-256 of the disk.
        firmware: from which it boots; empty: what is usual for its architecture.
        arch: the architecture of the machines that it is for.
    """

    key: str
    user: str
    digest: str
    firmware: str = ""
    arch: str = USUAL

    @property
    def place(self) -> str:
        """Its folder in the store."""
        return f"guests/{self.key}"

    def boots_with(self, wanted: str) -> str:
        """Give the firmware of a VM for which this one is wanted, or `auto`."""
        return wanted if wanted != "auto" else self.firmware or FIRMWARE[self.arch][0]

    def machine(self, firmware: str) -> dict[str, str]:
        """Give the runtime image's variables for a machine that it boots on; `firmware` as for `boots_with`."""
        return {"ARCH": self.arch, "FIRMWARE": self.boots_with(firmware)}

    @property
    def disk(self) -> str:
        """The disk's path in a container that has the store at `/store`."""
        return f"{MOUNT}/{self.place}/disk.qcow2"


def find(image: str, arch: str = "auto") -> Entry | Path | str:
    """Tell what an `image` setting means: an entry of the catalogue, a URL, or a disk image on this machine.

    With `arch`, the entry is for that architecture: `NAME-ARCH`, unless NAME is. Text is the name of a container
    image with a disk in it.

    Raises:
        ImageError: none of them; or the path is not that of a disk image.
    """
    known = catalogue()
    if image in known:
        return _for_arch(known[image], arch, known)
    if image.startswith(container_disk.SCHEME):
        return image.removeprefix(container_disk.SCHEME)
    if "://" in image:
        url, digest = download.split(image)
        name = _NO_NAME.sub("-", url.rpartition("/")[2]).lstrip("._-")[:60] or "image"
        return Published(name, DEFAULT_USER, url, digest, arch=_or_usual(arch))
    path = Path(image)
    if "/" not in image and not path.exists():
        near = difflib.get_close_matches(image, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        names = ", ".join(sorted({each.name for each in known.values() if each.arch == USUAL}))
        raise ImageError(
            f"no guest image is called {image!r}; {hint}the catalogue has {names}; a path, a URL "
            "or docker-image://NAME works, too"
        )
    disk_format.check_head(path, str(path), packed=True)
    return path


def _for_arch(entry: Entry, arch: str, known: Mapping[str, Entry]) -> Entry:
    if arch in {"auto", entry.arch}:
        return entry
    other = known.get(f"{entry.name}-{arch}")
    if other is not None and other.arch == arch:
        return other
    raise ImageError(
        f"guest image {entry.name} is for {entry.arch}; what there is for arch={arch!r}, virtainers images ls tells; "
        "a path or a URL works, too"
    )


def _or_usual(arch: str) -> str:
    return USUAL if arch == "auto" else arch


def architecture(image: str, arch: str) -> str:
    """Say for which architecture the disk is that `image` means, or `auto`, when nobody does as yet; as `find`."""
    found = find(image, arch)
    if isinstance(found, Entry):
        return found.arch
    return arch if isinstance(found, str) else _or_usual(arch)


def ensure(image: str, arch: str, shop: Workshop, progress: Progress) -> Guest:
    """Bring the disk that `image` means into the store, unless it is there; `arch` as for `find`.

    Raises:
        ImageError: it cannot be found, read, fetched or built.
        StoreError: the store cannot be written.
    """
    found = find(image, arch)
    if isinstance(found, Recipe):
        return _ensure_built(found, shop, progress)
    if isinstance(found, Published):
        return _ensure_fetched(found, shop, progress)
    if isinstance(found, str):
        return _ensure_taken_out(found, arch, shop, progress)
    return replace(_ensure_copied(found, shop, progress), arch=_or_usual(arch))


def _ensure_built(entry: Recipe, shop: Workshop, progress: Progress) -> Guest:
    title = f"building guest image {entry.name} from Debian's packages"
    manifest = _once(entry.key, title, shop, progress, lambda place, step: _build(entry, place, shop, step))
    return Guest(entry.key, entry.user, manifest["disk"]["sha256"], arch=entry.arch)


def _build(entry: Recipe, place: str, shop: Workshop, step: Step) -> dict[str, Any]:
    with shop.new(place) as out:
        shop.container.put_archive("/", build_context.archive(entry.recipe, into="recipe/") + tar.END)
        code, output = shop.container.run(
            ["/recipe/build", entry.suite, entry.arch, out, *([entry.flavour] if entry.flavour else [])],
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
    manifest = shop.manifest(place)
    if manifest is None:
        raise StoreError(f"{entry.key} was built, but the store does not show it")
    return manifest


def _ensure_fetched(entry: Published, shop: Workshop, progress: Progress) -> Guest:
    manifest = _once(
        entry.key, f"fetching {entry.name}", shop, progress, lambda _place, step: _fetch(entry, shop, step)
    )
    return Guest(entry.key, entry.user, manifest["disk"]["sha256"], entry.firmware, entry.arch)


def _fetch(entry: Published, shop: Workshop, step: Step) -> dict[str, Any]:
    folder = disk_format.downloads()
    disk, digest = folder / entry.key, entry.digest
    try:
        if entry.checksums is not None:
            name = entry.url.rpartition("/")[2]
            digest = checksums.published(entry.checksums, name, folder / f"{entry.key}.sums", step.update)
        sha256 = download.fetch(entry.url, digest, disk, step.update)
        disk_format.check_head(disk, entry.url)
        with locked("store"), shop.new(entry.place) as out:
            disk_format.send(disk, entry.url, shop, out, step)
            return disk_format.settle(entry.url, sha256, shop, out)
    finally:
        disk.unlink(missing_ok=True)


def _ensure_copied(path: Path, shop: Workshop, progress: Progress) -> Guest:
    with progress.step(f"reading {path.name}") as step:
        digest = disk_format.digest(path, step)
    key = f"file-{digest[:16]}"

    def copy(place: str, step: Step) -> dict[str, Any]:
        with disk_format.unpacked(path, key, step) as disk:
            sha256 = digest if disk == path else disk_format.digest(disk, step)
            with locked("store"), shop.new(place) as out:
                disk_format.send(disk, str(path), shop, out, step)
                return disk_format.settle(str(path), sha256, shop, out)

    manifest = _once(key, f"copying {path.name} into the store", shop, progress, copy)
    return Guest(key, DEFAULT_USER, manifest["disk"]["sha256"])


def _ensure_taken_out(reference: str, arch: str, shop: Workshop, progress: Progress) -> Guest:
    with progress.step(f"looking for image {reference}") as step:
        prepared = container_disk.look(shop.engine, reference, arch, step.update)
    key, name = f"image-{prepared.digest[:16]}", f"{container_disk.SCHEME}{reference}"

    def take_out(place: str, _step: Step) -> dict[str, Any]:
        with locked("store"), shop.new(place) as out:
            return disk_format.settle(name, container_disk.take_out(prepared, shop, out), shop, out)

    manifest = _once(key, f"copying the disk in {reference} into the store", shop, progress, take_out)
    user = prepared.user or DEFAULT_USER
    return Guest(key, user, manifest["disk"]["sha256"], prepared.firmware, prepared.arch)


def _once(
    key: str, title: str, shop: Workshop, progress: Progress, make: Callable[[str, Step], dict[str, Any]]
) -> dict[str, Any]:
    """Give the manifest of the guest image with this key; if the store has none, `make` makes it, and gives that."""
    place = f"guests/{key}"
    manifest = shop.recall(place)
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
