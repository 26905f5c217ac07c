"""Start a machine again from its evidence: from its disk, or, where its memory was kept, at the same instant.

The folder may come from strangers (see `evidence_manifest`). Its disk is a guest's, which the container keeps in. Its
memory is loaded by QEMU, which was not made to withstand what others write there: so only what this user's runs have
written on this machine is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.config.parsing import brief
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
from pytest_virtainers.guests.images import Guest
from pytest_virtainers.launching.bring_up import SavedVM
from pytest_virtainers.ssh import keys
from pytest_virtainers.ssh.keys import KeyPair, Keys
from pytest_virtainers.support import runtime
from pytest_virtainers.support.runtime import protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_virtainers.launching.launcher import Launcher
    from pytest_virtainers.vm.vm import VM

_CHUNK_BYTES = 1024 * 1024
MEMORY = f"{protocol.IMAGE_DIR}/resume"
"""Where the container of a machine that goes on has its memory, by which its supervisor calls it."""
DISK = f"{protocol.IMAGE_DIR}/{protocol.OVERLAY}"
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
    qcow2 = runtime.load("qcow2")
    with open_file(folder, OVERLAY) as file:
        complaint = qcow2.complaint(file.read(qcow2.HEAD_BYTES))
    if complaint:
        raise SpecError(f"{shown(folder / OVERLAY)} {complaint}")


def _strange(folder: Path, fact: str) -> str:
    return (
        f"{shown(folder / STATE)} {fact}, and QEMU loads whatever such a file says: --disk-only boots the disk "
        "without the memory, --trust loads it"
    )


def guest(launcher: Launcher, evidence: Evidence) -> Guest:
    """Give the guest image on which the disk was made.

    Raises:
        SpecError: it is not in the store, and strangers say from where to have it.
        ImageError: it is not to be had any more; the message has both digests.
    """
    wanted = evidence.manifest
    found = Guest(wanted.guest_key, wanted.user, wanted.guest_digest, arch=wanted.spec.arch)
    with launcher.store.open() as shop:
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
    present = launcher.guests.get(image, wanted.spec.arch)
    if present.digest != found.digest:
        raise ImageError(
            f"{shown(evidence.folder)} was made on {image} with sha256 {found.digest}, and what is called so now has "
            f"sha256 {present.digest}: on another disk, its own means nothing. Keep guest images as long as evidence "
            "(virtainers store ls), or keep flat disks (virtainers resume --export)"
        )
    return present


def launch(launcher: Launcher, evidence: Evidence) -> VM:
    """Start the machine; it may be one that does not let us in, so nothing waits for that.

    Raises:
        SpecError: a file of the folder is missing, or is not what it should be.
        ImageError: its guest image is not to be had any more.
        EngineError: its container does not start.
    """
    login = KeyPair(_login_key(evidence.folder), "")
    saved = SavedVM(
        evidence.manifest.spec,
        guest=guest(launcher, evidence),
        user=evidence.manifest.user,
        keys=Keys(login, KeyPair("", evidence.manifest.host_key)),
        environment={"RESUME": MEMORY} if evidence.has_memory else {},
        disk=lambda: _archive(evidence),
        seed_iso=_seed(evidence.folder),
    )
    return launcher.start_saved(saved)


def _login_key(folder: Path) -> str:
    try:
        return keys.private_pem(read_file(folder, KEY).decode(errors="replace"))
    except ValueError as error:
        raise SpecError(f"{shown(folder / KEY)}: {error}") from None


def _seed(folder: Path) -> bytes:
    return read_file(folder, SEED) if os.path.lexists(folder / SEED) else b""


def _archive(evidence: Evidence) -> Iterator[bytes]:
    """Stream what the machine's folder had in it, as tar."""
    yield from _file(protocol.OVERLAY, evidence, OVERLAY)
    if evidence.has_memory:
        facts = {"memory": True, "machine": evidence.manifest.machine}
        yield from _entry("resume/", b"", tarfile.DIRTYPE)
        yield from _entry(f"resume/{protocol.RESUME_FACTS}", json.dumps(facts).encode())
        yield from _file(f"resume/{protocol.EVIDENCE_STATE}", evidence, STATE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _entry(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> Iterator[bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.mode = len(content), kind, 0o755 if kind == tarfile.DIRTYPE else 0o600
    yield entry.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _file(name: str, evidence: Evidence, source: str) -> Iterator[bytes]:
    """Stream a file of the folder; it is checked on the way, and the container starts only after that."""
    with open_file(evidence.folder, source) as file:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = os.fstat(file.fileno()).st_size, 0o600
        yield entry.tobuf(tarfile.GNU_FORMAT)
        sha256, left = hashlib.sha256(), entry.size
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
    yield bytes(-entry.size % tarfile.BLOCKSIZE)


def export(launcher: Launcher, evidence: Evidence, target: Path) -> None:
    """Write the machine's disk as one flat qcow2 file.

    Raises:
        SpecError, ImageError: as `launch` does, or the disk cannot be made.
    """
    name = shown(evidence.folder / OVERLAY)
    launcher.disks.flatten(_archive(evidence), name, (guest(launcher, evidence).place,), target)
