"""Guest images: what an `image` setting means, and how its disk gets into the store.

A catalogue name is a recipe, built in an unprivileged container at first use, or a published disk, which is
downloaded at first use like a URL. A path is copied into the store, and so is the disk of a container image.

The key of a copied disk is the hash of its file or container image, and that of a built disk the hash of its recipe.
The key of a download is the hash of its URL and expected digest, so downloads of different days may differ under one
key; the digests in their manifests distinguish them.
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
from pytest_virtainers.guests import checksums, container_disk, download, import_disk
from pytest_virtainers.guests.catalogue import DEFAULT_USER, Entry, Published, Recipe, catalogue
from pytest_virtainers.store.places import MOUNT
from pytest_virtainers.support.files import file_digest
from pytest_virtainers.support.paths import locked
from pytest_virtainers.support.runtime_modules import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_virtainers.store.volume import OpenStore
    from pytest_virtainers.support.progress import Progress, Step

_NO_NAME = re.compile("[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class GuestImage:
    """A guest image in the store.

    Attributes:
        key: the name in the store.
        user: the login user.
        digest: SHA-256 of the original disk.
        firmware: from which it boots; empty: the default of its architecture.
        arch: the CPU architecture of its VMs.
    """

    key: str
    user: str
    digest: str
    firmware: str = ""
    arch: str = USUAL

    @property
    def place(self) -> str:
        """The folder in the store."""
        return f"guests/{self.key}"

    def boots_with(self, requested: str) -> str:
        """Return the firmware of a VM that requests this one, or `auto`."""
        return requested if requested != "auto" else self.firmware or FIRMWARE[self.arch][0]

    def variables(self, firmware: str) -> dict[str, str]:
        """Return the container's variables for a VM that boots it; `firmware` as in `boots_with`."""
        return {Variable.ARCH: self.arch, Variable.FIRMWARE: self.boots_with(firmware)}

    @property
    def disk(self) -> str:
        """The path of the disk in a container with the store at `/store`."""
        return f"{MOUNT}/{self.place}/disk.qcow2"


def find(image: str, arch: str = "auto") -> Entry | Path | str:
    """Return what an `image` setting means.

    Args:
        image: a name in the catalogue, a URL, `docker-image://NAME`, or a path.
        arch: the requested architecture, or `auto`. `NAME` means `NAME-ARCH` if it is for another one.

    Returns:
        An entry for a name or URL, the path of a disk image, or the name of a container image as text.

    Raises:
        ImageError: the image is none of these, or the path is not a disk image.
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
            f"there is no guest image {image!r}; {hint}the catalogue has {names}. A path, a URL and "
            "docker-image://NAME are allowed, too"
        )
    import_disk.check_head(path, str(path), compressed=True)
    return path


def _for_arch(entry: Entry, arch: str, known: Mapping[str, Entry]) -> Entry:
    if arch in {"auto", entry.arch}:
        return entry
    other = known.get(f"{entry.name}-{arch}")
    if other is not None and other.arch == arch:
        return other
    raise ImageError(
        f"guest image {entry.name} is for {entry.arch}, not for arch={arch!r}. List the images of each architecture: "
        "virtainers images ls. A path and a URL are allowed, too"
    )


def _or_usual(arch: str) -> str:
    return USUAL if arch == "auto" else arch


def architecture(image: str, arch: str) -> str:
    """Return the architecture of a disk, or `auto` if it is not known yet; arguments and errors as in `find`."""
    found = find(image, arch)
    if isinstance(found, Entry):
        return found.arch
    return arch if isinstance(found, str) else _or_usual(arch)


def ensure(image: str, arch: str, store: OpenStore, progress: Progress) -> GuestImage:
    """Copy the disk of an `image` setting into the store, unless it is there; `image` and `arch` as in `find`.

    Raises:
        ImageError: the disk cannot be found, read, downloaded or built.
        StoreError: the store cannot be written.
    """
    found = find(image, arch)
    if isinstance(found, Recipe):
        return _ensure_built(found, store, progress)
    if isinstance(found, Published):
        return _ensure_downloaded(found, store, progress)
    if isinstance(found, str):
        return _ensure_extracted(found, arch, store, progress)
    return replace(_ensure_copied(found, store, progress), arch=_or_usual(arch))


def _ensure_built(entry: Recipe, store: OpenStore, progress: Progress) -> GuestImage:
    title = f"building guest image {entry.name} from Debian packages"
    manifest = _once(entry.key, title, store, progress, lambda place, step: _build(entry, place, store, step))
    return GuestImage(entry.key, entry.user, manifest["disk"]["sha256"], arch=entry.arch)


def _build(entry: Recipe, place: str, store: OpenStore, step: Step) -> dict[str, Any]:
    with store.new(place) as out:
        store.container.put_archive("/", build_context.archive(entry.recipe, into="recipe/") + tar.END)
        code, output = store.container.run(
            ["/recipe/build", entry.suite, entry.arch, out, *([entry.flavour] if entry.flavour else [])],
            lambda piece: step.update(_last_line(piece)),
        )
        if code != 0:
            raise ImageError(
                store.explain(
                    f"building guest image {entry.name} failed (exit code {code}). It needs a Debian mirror that "
                    "containers can reach, and about 3 GiB of free space in the store. Last lines of the build",
                    output.decode(errors="replace"),
                )
            )
    manifest = store.manifest(place)
    if manifest is None:
        raise StoreError(f"{entry.key} was built, but it is missing in the store")
    return manifest


def _ensure_downloaded(entry: Published, store: OpenStore, progress: Progress) -> GuestImage:
    title = f"downloading {entry.name}"
    manifest = _once(entry.key, title, store, progress, lambda _place, step: _download(entry, store, step))
    return GuestImage(entry.key, entry.user, manifest["disk"]["sha256"], entry.firmware, entry.arch)


def _download(entry: Published, store: OpenStore, step: Step) -> dict[str, Any]:
    folder = download.folder()
    disk, digest = folder / entry.key, entry.digest
    try:
        if entry.checksums is not None:
            name = entry.url.rpartition("/")[2]
            digest = checksums.published(entry.checksums, name, folder / f"{entry.key}.sums", step.update)
        sha256 = download.fetch(entry.url, digest, disk, step.update)
        import_disk.check_head(disk, entry.url)
        with locked("store"), store.new(entry.place) as out:
            import_disk.send(disk, entry.url, store, out, step)
            return import_disk.settle(entry.url, sha256, store, out)
    finally:
        disk.unlink(missing_ok=True)


def _ensure_copied(path: Path, store: OpenStore, progress: Progress) -> GuestImage:
    with progress.step(f"reading {path.name}") as step:
        digest = file_digest(path, step.update)
    key = f"file-{digest[:16]}"

    def copy(place: str, step: Step) -> dict[str, Any]:
        with import_disk.decompressed(path, key, step) as disk:
            sha256 = digest if disk == path else file_digest(disk, step.update)
            with locked("store"), store.new(place) as out:
                import_disk.send(disk, str(path), store, out, step)
                return import_disk.settle(str(path), sha256, store, out)

    manifest = _once(key, f"copying {path.name} into the store", store, progress, copy)
    return GuestImage(key, DEFAULT_USER, manifest["disk"]["sha256"])


def _ensure_extracted(reference: str, arch: str, store: OpenStore, progress: Progress) -> GuestImage:
    with progress.step(f"looking for image {reference}") as step:
        prepared = container_disk.find(store.engine, reference, arch, step.update)
    key, name = f"image-{prepared.digest[:16]}", f"{container_disk.SCHEME}{reference}"

    def extract(place: str, _step: Step) -> dict[str, Any]:
        with locked("store"), store.new(place) as out:
            return import_disk.settle(name, container_disk.extract(prepared, store, out), store, out)

    manifest = _once(key, f"copying the disk in {reference} into the store", store, progress, extract)
    user = prepared.user or DEFAULT_USER
    return GuestImage(key, user, manifest["disk"]["sha256"], prepared.firmware, prepared.arch)


def _once(
    key: str, title: str, store: OpenStore, progress: Progress, make: Callable[[str, Step], dict[str, Any]]
) -> dict[str, Any]:
    """Return the manifest of the guest image with this key; if the store has none, `make` creates it."""
    place = f"guests/{key}"
    manifest = store.recall(place)
    if manifest is None:
        with (
            progress.step(title) as step,
            locked(f"image-{key}", lambda: step.update("waiting for another process")),
        ):
            manifest = store.manifest(place) or make(place, step)
    return manifest


def _last_line(piece: bytes) -> str:
    lines = piece.decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")
