"""Start a machine again from its evidence: from its disk, or, where its memory was kept, at the same instant.

The folder may come from strangers (see `evidence_manifest`). Its disk is a guest's, which the container keeps in. Its
memory is loaded by QEMU, which was not made to withstand what others write there: so only what this user's runs have
written on this machine is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from pytest_virtainers.config.spec import brief
from pytest_virtainers.engine import build_context, tar
from pytest_virtainers.errors import ImageError, SpecError
from pytest_virtainers.evidence import manifest_file
from pytest_virtainers.evidence.manifest_file import (
    KEY,
    MANIFEST,
    OVERLAY,
    SEED,
    STATE,
    Manifest,
    open_file,
    read_file,
    shown,
)
from pytest_virtainers.guests.catalogue import catalogue
from pytest_virtainers.guests.flat_disk import LAYER
from pytest_virtainers.guests.images import Guest
from pytest_virtainers.ssh import keys
from pytest_virtainers.ssh.keys import KeyPair, Keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_virtainers.launching.launcher import Manager
    from pytest_virtainers.vm.vm import VM

_CHUNK_BYTES = 1024 * 1024
MEMORY = "/mounted/resume"
"""Where the container of a machine that goes on has its memory, by which its supervisor calls it."""
DISK = f"/mounted/{LAYER}"
"""Where it has its disk."""


@dataclass(frozen=True)
class Evidence:
    """A folder of evidence, read and checked.

    Attributes:
        folder: where it is.
        manifest: what it says.
        has_memory: whether it goes on at the instant at which it was taken.
        trusted: whether the user trusts it, or this user's run wrote it.
        checks_digests: whether disk and memory have to be those that were sealed.
    """

    folder: Path
    manifest: Manifest
    has_memory: bool
    trusted: bool
    checks_digests: bool


def read(folder: Path, *, disk_only: bool = False, trust: bool = False) -> Evidence:
    """Read a folder of evidence, and check it.

    Args:
        folder: where it is.
        disk_only: its memory does not count.
        trust: load its memory, and fetch its guest image, also where strangers may have written what they are.

    Raises:
        SpecError: it is none, one without a disk, or one whose memory strangers may have written.
    """
    manifest = manifest_file.read(folder)
    if not os.path.lexists(folder / OVERLAY):
        raise SpecError(f"{shown(folder)} has no disk to start from: {manifest.no_disk or 'it is not there'}")
    _check_header(folder)
    has_memory = manifest.machine is not None and not disk_only
    sealed = manifest.is_ours and {OVERLAY, STATE} <= manifest.digests.keys()
    if has_memory:
        open_file(folder, STATE).close()
        if not (sealed or trust):
            raise SpecError(_strange(folder, "was not written by a run of this user on this machine"))
    return Evidence(folder, manifest, has_memory, trust or manifest.is_ours, has_memory and not trust)


def _check_header(folder: Path) -> None:
    """Raise `SpecError` if the disk leads to other files; where it is used, that is looked at again."""
    qcow2 = build_context.module("runtime/virtainer/qcow2.py")
    with open_file(folder, OVERLAY) as file:
        complaint = qcow2.complaint(file.read(qcow2.HEAD_BYTES))
    if complaint:
        raise SpecError(f"{shown(folder / OVERLAY)} {complaint}")


def _strange(folder: Path, fact: str) -> str:
    return (
        f"{shown(folder / STATE)} {fact}, and QEMU loads whatever such a file says: --disk-only boots the disk "
        "without the memory, --trust loads it"
    )


def guest(manager: Manager, evidence: Evidence) -> Guest:
    """Give the guest image on which the disk was made.

    Raises:
        SpecError: it is not in the store, and strangers say from where to have it.
        ImageError: it is not to be had any more; the message has both digests.
    """
    wanted = evidence.manifest
    found = Guest(wanted.guest_key, wanted.user, wanted.guest_digest, arch=wanted.spec.arch)
    with manager.store() as shop:
        manifest = shop.manifest(found.place)
    if manifest is not None and (manifest.get("disk") or {}).get("sha256") == found.digest:
        return found
    image = wanted.spec.image
    if not evidence.trusted and image not in catalogue():
        raise SpecError(
            f"{shown(evidence.folder / MANIFEST)}: spec.image={brief(image)}: the guest image is not "
            "in the store, and evidence of others does not say what this machine reads or fetches: bring it there "
            "(virtainers images pull IMAGE), or use --trust"
        )
    present = manager.guest(image, wanted.spec.arch)
    if present.digest != found.digest:
        raise ImageError(
            f"{shown(evidence.folder)} was made on {image} with sha256 {found.digest}, and what is called so now has "
            f"sha256 {present.digest}: on another disk, its own means nothing. Keep guest images as long as evidence "
            "(virtainers store ls), or keep flat disks (virtainers resume --export)"
        )
    return present


def launch(manager: Manager, evidence: Evidence) -> VM:
    """Start the machine; it may be one that does not let us in, so nothing waits for that.

    Raises:
        SpecError: a file of the folder is missing, or is not what it should be.
        ImageError: its guest image is not to be had any more.
        EngineError: its container does not start.
    """
    login = KeyPair(_login_key(evidence.folder), "")
    return manager.start_kept(
        evidence.manifest.spec,
        guest=guest(manager, evidence),
        user=evidence.manifest.user,
        keys=Keys(login, KeyPair("", evidence.manifest.host_key)),
        environment={"RESUME": MEMORY} if evidence.has_memory else {},
        disk=lambda: _archive(evidence),
        seed_iso=_seed(evidence.folder),
    )


def _login_key(folder: Path) -> str:
    try:
        return keys.private_pem(read_file(folder, KEY).decode(errors="replace"))
    except ValueError as error:
        raise SpecError(f"{shown(folder / KEY)}: {error}") from None


def _seed(folder: Path) -> bytes:
    return read_file(folder, SEED) if os.path.lexists(folder / SEED) else b""


def _archive(evidence: Evidence) -> Iterator[bytes]:
    """Stream what the machine's folder had in it, as tar."""
    yield from _file(LAYER, evidence, OVERLAY)
    if evidence.has_memory:
        facts = {"memory": True, "machine": evidence.manifest.machine}
        yield tar.folder("resume/")
        yield tar.entry("resume/facts.json", json.dumps(facts).encode())
        yield from _file("resume/state", evidence, STATE)
    yield tar.END


def _file(name: str, evidence: Evidence, source: str) -> Iterator[bytes]:
    """Stream a file of the folder as a member of a tar stream."""
    with open_file(evidence.folder, source) as file:
        size = os.fstat(file.fileno()).st_size
        yield from tar.large_entry(name, _checked(file, size, evidence, source), size)


def _checked(file: IO[bytes], size: int, evidence: Evidence, source: str) -> Iterator[bytes]:
    """Yield a file's content, and check its digest at the end: the container starts only after that."""
    sha256, left = hashlib.sha256(), size
    while left:
        data = file.read(min(left, _CHUNK_BYTES))
        if not data:
            raise SpecError(f"{shown(evidence.folder / source)} became shorter while it was read")
        sha256.update(data)
        left -= len(data)
        yield data
    if evidence.checks_digests and sha256.hexdigest() != evidence.manifest.digests[source]:
        fact = "has changed since a run of this user wrote it"
        if source == OVERLAY:
            fact = f"is of a moment at which {OVERLAY} was another: one of both has changed"
        raise SpecError(_strange(evidence.folder, fact))


def export(manager: Manager, evidence: Evidence, target: Path) -> None:
    """Write the machine's disk as one flat qcow2 file.

    Raises:
        SpecError, ImageError: as `launch` does.
        StoreError: the disk could not be made.
    """
    name = shown(evidence.folder / OVERLAY)
    manager.flatten(_archive(evidence), name, (guest(manager, evidence).place,), target)
