"""Start a machine again from its evidence: from its disk, or, where its memory was kept, at the same instant."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_virtainers import arch
from pytest_virtainers.errors import ImageError, SpecError
from pytest_virtainers.evidence import FORMAT, KEY, MANIFEST, OVERLAY, SEED, STATE
from pytest_virtainers.images import Guest
from pytest_virtainers.keys import KeyPair, Keys
from pytest_virtainers.settings import resolve
from pytest_virtainers.spec import Spec, merge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pytest_virtainers.handle.vm import VM
    from pytest_virtainers.manager import Manager

_CHUNK_BYTES = 1024 * 1024
MEMORY = "/mounted/resume"
"""Where the container of a machine that goes on has its memory, by which its supervisor calls it."""


@dataclass(frozen=True)
class Evidence:
    """A folder of evidence, read; with `disk_only`, its memory does not count."""

    folder: Path
    manifest: Mapping[str, Any]
    disk_only: bool = False

    @property
    def spec(self) -> Spec:
        """What the machine was asked to be, as far as it shapes it; one that had too little time gets the usual."""
        usual, asked = resolve([]).shape, self.manifest["spec"]
        patience = max(usual["boot_timeout"], asked["boot_timeout"])
        return merge(usual, {**asked, "boot_timeout": patience, "template": False})

    @property
    def has_memory(self) -> bool:
        """Whether it can go on at the instant at which it was taken."""
        return not self.disk_only and bool(self.manifest["machine"].get("memory"))


def read(folder: Path) -> Evidence:
    """Read a folder of evidence.

    Raises:
        SpecError: it is none, or one without a disk.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise SpecError(f"{folder} is no folder of evidence: {MANIFEST}: {error}") from None
    if manifest.get("format") != FORMAT:
        raise SpecError(f"{folder} was written by another version ({manifest.get('format')}, not {FORMAT})")
    if not (folder / OVERLAY).exists():
        why = manifest.get("missing", {}).get(OVERLAY, "it is not there")
        raise SpecError(f"{folder} has no disk to start from: {why}")
    return Evidence(folder, manifest)


def guest(manager: Manager, evidence: Evidence) -> Guest:
    """Give the guest image on which the disk was made.

    Raises:
        ImageError: it is not to be had any more; the message has both digests.
    """
    wanted = evidence.manifest["guest"]
    with manager.store() as shop:
        manifest = shop.manifest(f"guests/{wanted['key']}")
    if manifest is not None and manifest["disk"]["sha256"] == wanted["digest"]:
        kind = evidence.manifest["spec"].get("arch", arch.USUAL)  # evidence of earlier versions has none
        return Guest(wanted["key"], evidence.manifest["user"], wanted["digest"], arch=kind)
    present = manager.guest(evidence.spec.image, evidence.spec.arch)
    if present.digest != wanted["digest"]:
        raise ImageError(
            f"{evidence.folder} was made on {evidence.spec.image} with sha256 {wanted['digest']}, and what is called "
            f"so now has sha256 {present.digest}: on another disk, its own means nothing. Keep guest images as long "
            "as evidence (virtainers store ls), or keep flat disks (virtainers resume --export)"
        )
    return present


def launch(manager: Manager, folder: Path, *, disk_only: bool = False) -> VM:
    """Start the machine; it may be one that does not let us in, so nothing waits for that.

    With `disk_only` it boots, also where its memory was kept.

    Raises:
        SpecError: the folder is none of evidence.
        ImageError: its guest image is not to be had any more.
        EngineError: its container does not start.
    """
    evidence = replace(read(folder), disk_only=disk_only)
    disk = guest(manager, evidence)
    try:
        keys = Keys(KeyPair((folder / KEY).read_text(), ""), KeyPair("", str(evidence.manifest["host_key"])))
    except (OSError, KeyError) as error:
        raise SpecError(f"{folder} has no key to log in with: {error}") from None
    environment = {"RESUME": MEMORY} if evidence.has_memory else {}
    return manager.start_kept(
        evidence.spec,
        guest=disk,
        user=str(evidence.manifest["user"]),
        keys=keys,
        environment=environment,
        disk=lambda: _archive(evidence),
        seed_iso=_seed(evidence),
    )


def _seed(evidence: Evidence) -> bytes:
    seed = evidence.folder / SEED
    return seed.read_bytes() if seed.exists() else b""


def _archive(evidence: Evidence) -> Iterator[bytes]:
    """Stream what the machine's folder had in it, as tar."""
    yield from _file("local_image.qcow2", evidence.folder / OVERLAY)
    if evidence.has_memory:
        yield from _entry("resume/", b"", tarfile.DIRTYPE)
        yield from _entry("resume/facts.json", json.dumps(evidence.manifest["machine"]).encode())
        yield from _file("resume/state", evidence.folder / STATE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _entry(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> Iterator[bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.mode = len(content), kind, 0o755 if kind == tarfile.DIRTYPE else 0o600
    yield entry.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _file(name: str, path: Path) -> Iterator[bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, 0o600
    yield entry.tobuf(tarfile.GNU_FORMAT)
    with path.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            yield data
    yield bytes(-entry.size % tarfile.BLOCKSIZE)


def export(manager: Manager, folder: Path, target: Path) -> None:
    """Write the machine's disk as one flat qcow2 file.

    Raises:
        SpecError, ImageError: as `launch` does.
        StoreError: the disk could not be made.
    """
    evidence = read(folder)
    disk = guest(manager, evidence)
    with manager.store() as shop, shop.scratch() as scratch:
        shop.container.put_archive(scratch, _archive(evidence))
        shop.shell(f"cd {scratch} && qemu-img rebase -u -f qcow2 -F qcow2 -b {disk.disk} local_image.qcow2")
        shop.fetch_flat(scratch, "local_image.qcow2", target)
