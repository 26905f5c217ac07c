"""Container images with a guest disk: find one, extract its disk, build one.

`bake` builds the runtime image with the disk at `/image`, so that the engine's own `run` starts the VM. Disks are
extracted from such images, and from KubeVirt's containerDisks, which have one disk of any name in `/disk`
(https://kubevirt.io/user-guide/storage/disks_and_volumes/#containerdisk).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.config import parsing
from pytest_virtainers.config.architecture import FIRMWARE, check_firmware
from pytest_virtainers.engine import build_context, tar
from pytest_virtainers.engine.ownership import LABEL
from pytest_virtainers.errors import ImageError, SpecError
from pytest_virtainers.guests.catalogue import catalogue
from pytest_virtainers.guests.import_disk import DISK
from pytest_virtainers.support.runtime_modules import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_virtainers.engine.base import Engine
    from pytest_virtainers.engine.facts import Image
    from pytest_virtainers.guests.images import GuestImage
    from pytest_virtainers.store.volume import OpenStore

SCHEME = "docker-image://"
PLACES = ("/image", "/disk")
"""The possible paths of the disk in a container image."""
_USER, _FIRMWARE, _ARCH = f"{LABEL}.user", f"{LABEL}.firmware", f"{LABEL}.arch"
"""Labels of a container image: the guest's login user, firmware and architecture."""
_PARSERS = {
    _USER: parsing.user_name,
    _FIRMWARE: parsing.choice("bios", "uefi"),
    _ARCH: parsing.choice(*FIRMWARE),
}
_SETTLE = """
cd "$1" && find . -type f -exec mv -T {} .found ';' && find . -mindepth 1 ! -path ./.found -delete &&
    chown 0:0 .found && chmod 644 .found && mv .found "$2" && sha256sum "$2"
"""
_REPOSITORY = "localhost/virtainers"
_PART = "[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_TAG = re.compile(rf"(?:{_PART}(?::[0-9]+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]*)?", re.ASCII)
_TAGGED = re.compile(r":[^/]+$")


@dataclass(frozen=True)
class Prepared:
    """A container image on the engine.

    Attributes:
        reference: its requested name.
        id: its ID on the engine; the reference may later name another image.
        user: the guest's login user, if the image has this label.
        firmware: the guest's firmware, if the image has this label; else empty.
        arch: the guest's architecture: by the label, else that of the image.
    """

    reference: str
    id: str
    user: str | None
    firmware: str
    arch: str

    @property
    def digest(self) -> str:
        """The ID in hexadecimal."""
        return self.id.removeprefix("sha256:")


def find(engine: Engine, reference: str, arch: str, report: Callable[[str], object]) -> Prepared:
    """Find a container image on the engine, or pull it.

    Args:
        engine: the engine that uses the image.
        reference: name of the image.
        arch: requested architecture of its guest, or `auto`.
        report: called with the engine's progress messages.

    Raises:
        ImageError: there is no such image, or it is for another architecture.
        EngineError: the engine failed.
    """
    if not reference:
        raise ImageError(f"image {SCHEME}: the name of the container image is missing")
    found = engine.image(reference)
    if found is None:
        output = engine.pull(reference, report)
        found = engine.image(reference)
        if found is not None and arch not in {"auto", _read(found, reference).arch}:
            engine.pull(reference, report, arch)  # a containerDisk for several architectures
            found = engine.image(reference)
        if found is None:
            raise ImageError(
                f"image {SCHEME}{reference}: {engine} has no such image, and pulling it failed: {output}. If the "
                f"name is right, load it ({engine.kind} load), or build it: virtainers images bake"
            )
    prepared = _read(found, reference)
    if arch not in {"auto", prepared.arch}:
        raise ImageError(
            f"image {SCHEME}{reference}: its guest is for {prepared.arch}, not for {arch}. If there is one for "
            f"{arch}, pull it: {engine.kind} pull --platform linux/{arch} {reference}"
        )
    return prepared


def _read(found: Image, reference: str) -> Prepared:
    """Parse the labels of an image; raise `ImageError` if one is not valid."""
    read: dict[str, str] = {}
    for label, parse in _PARSERS.items():
        try:  # the value is used in configurations and command lines
            if label in found.labels:
                read[label] = parse(found.labels[label])
        except ValueError as error:
            raise ImageError(
                f"image {SCHEME}{reference}: its label {label}={found.labels[label]!r} is not valid: {error}"
            ) from None
    firmware, arch = read.get(_FIRMWARE, ""), read.get(_ARCH, found.arch)
    try:
        check_firmware(parsing.choice(*FIRMWARE)(arch), firmware)
    except ValueError as error:
        raise ImageError(f"image {SCHEME}{reference} is for {arch}: {error}") from None
    return Prepared(reference, found.id, read.get(_USER), firmware, arch)


def extract(image: Prepared, store: OpenStore, out: str) -> str:
    """Copy the disk of a container image into the folder `out` of the store and return its SHA-256.

    Raises:
        ImageError: the image has no disk, or several.
        StoreError: the store cannot be written to.
        EngineError: the engine failed.
    """
    with store.files_of(image.id) as container:
        for place in PLACES:
            if (pieces := container.archive(place)) is not None:
                store.container.put_archive(out, pieces)
                break
    # Only a regular file counts, with any name and owner; a link could lead out of the image.
    count = int(store.shell('find "$1" -type f -printf x | wc -c', out))
    if count != 1:
        what = "no disk" if count == 0 else f"{count} files"
        raise ImageError(
            f"image {SCHEME}{image.reference}: it has {what} at {' or '.join(PLACES)}. An image of virtainers images "
            "bake has its disk as the file /image, a containerDisk as one file in the folder /disk"
        )
    return store.shell(_SETTLE, out, DISK).split()[0]


def tag_for(image: str, tag: str | None) -> str:
    """Return the name of a container image to build: for `debian-13` by default `localhost/virtainers/debian:13`.

    Raises:
        SpecError: `tag` is not a valid name, or it is missing and the guest image is not in the catalogue.
    """
    if tag is not None:
        if not _TAG.fullmatch(tag):
            raise SpecError(
                f"{tag!r} is not a valid name of a container image, such as localhost/virtainers/debian:13"
            )
        return tag if _TAGGED.search(tag) else f"{tag}:latest"
    known = catalogue()
    if image not in known:
        raise SpecError(f"{image} is not in the catalogue: name the container image with --tag")
    name = known[image].name
    distribution, _, version = name.partition("-")
    return f"{_REPOSITORY}/{distribution}:{version or 'latest'}"


def bake(guest: GuestImage, tag: str, runtime_image: str, store: OpenStore, report: Callable[[str], object]) -> str:
    """Build a container image from the runtime image and a guest disk of the store; return its name and tag.

    Args:
        guest: the guest image in the store.
        tag: the result of `tag_for`.
        runtime_image: name of the runtime image.
        store: the store.
        report: called with each line of the build.

    Raises:
        ImageError: the build failed.
        EngineError: the engine failed.
    """
    variables = guest.variables("auto")
    store.engine.build(
        _context(guest, store),
        tag=tag,
        arguments={"RUNTIME": runtime_image, **variables},
        labels={_USER: guest.user, _FIRMWARE: variables[Variable.FIRMWARE], _ARCH: variables[Variable.ARCH]},
        on_line=report,
    )
    return tag


def _context(guest: GuestImage, store: OpenStore) -> Iterator[bytes]:
    """Yield the build context as a tar stream: the recipe, then the disk as the engine archives it."""
    yield build_context.archive("prepared")
    yield from store.container.archive(guest.disk) or (tar.END,)
