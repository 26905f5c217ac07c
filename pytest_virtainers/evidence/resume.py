"""Resume a VM from its evidence: boot its disk or, if its memory was saved, continue at that moment.

The folder may come from strangers (see `manifest_file`). The container confines a hostile disk like any other guest.
A hostile memory file is different, as QEMU trusts what it loads: only files that this user wrote on this machine are
loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from pytest_virtainers.config.parsing import brief
from pytest_virtainers.engine import tar
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
from pytest_virtainers.guests.images import GuestImage
from pytest_virtainers.launching.bring_up import SavedVM
from pytest_virtainers.ssh import keys
from pytest_virtainers.ssh.keys import KeyPair, Keys
from pytest_virtainers.support import runtime_modules
from pytest_virtainers.support.runtime_modules import Variable, protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_virtainers.launching.launcher import Launcher
    from pytest_virtainers.vm.vm import VM

_CHUNK_BYTES = 1024 * 1024
MEMORY = f"{protocol.IMAGE_DIR}/resume"
"""The path of the memory in the container, which messages of the supervisor contain."""
DISK = f"{protocol.IMAGE_DIR}/{protocol.OVERLAY}"
"""The path of the disk in the container."""


@dataclass(frozen=True)
class Evidence:
    """A checked folder of evidence.

    Attributes:
        folder: its path.
        manifest: its checked manifest.
        has_memory: whether the VM continues from its memory.
        trusted: whether the user trusts it, or a run of this user wrote it.
        checks_digests: whether disk and memory must have the sealed digests.
    """

    folder: Path
    manifest: Manifest
    has_memory: bool
    trusted: bool
    checks_digests: bool


def read(folder: Path, *, disk_only: bool = False, trust: bool = False) -> Evidence:
    """Read and check a folder of evidence.

    Args:
        folder: its path.
        disk_only: ignore the memory.
        trust: load the memory, and download the guest image, even if another user or machine wrote the folder.

    Raises:
        SpecError: the folder is not valid, has no disk, or has memory that another user may have written.
    """
    manifest = manifest_file.read(folder)
    if not os.path.lexists(folder / OVERLAY):
        raise SpecError(f"{shown(folder)} has no disk to start from: {manifest.no_disk or 'the file is missing'}")
    _check_header(folder)
    has_memory = manifest.machine is not None and not disk_only
    sealed = manifest.is_ours and {OVERLAY, STATE} <= manifest.digests.keys()
    if has_memory:
        open_file(folder, STATE).close()
        if not (sealed or trust):
            raise SpecError(_untrusted(folder, "was not written by a run of this user on this machine"))
    return Evidence(folder, manifest, has_memory, trust or manifest.is_ours, has_memory and not trust)


def _check_header(folder: Path) -> None:
    """Raise `SpecError` if the disk refers to other files; the container checks it again."""
    qcow2 = runtime_modules.load("qcow2")
    with open_file(folder, OVERLAY) as file:
        complaint = qcow2.complaint(file.read(qcow2.HEAD_BYTES))
    if complaint:
        raise SpecError(f"{shown(folder / OVERLAY)} {complaint}")


def _untrusted(folder: Path, fact: str) -> str:
    return (
        f"{shown(folder / STATE)} {fact}, and QEMU does not check such a file. Boot the disk without the memory "
        "(--disk-only), or load it anyway (--trust)"
    )


def guest(launcher: Launcher, evidence: Evidence) -> GuestImage:
    """Return the guest image below the disk.

    Raises:
        SpecError: the image is not in the store, and the evidence is not trusted to name its source.
        ImageError: the image is no longer available; the message has both digests.
    """
    expected = evidence.manifest
    found = GuestImage(expected.guest_key, expected.user, expected.guest_digest, arch=expected.spec.arch)
    with launcher.store.open() as store:
        manifest = store.manifest(found.place)
    if manifest is not None and (manifest.get("disk") or {}).get("sha256") == found.digest:
        return found
    image = expected.spec.image
    if not evidence.trusted and image not in catalogue():
        raise SpecError(
            f"{shown(evidence.folder / MANIFEST)}: spec.image={brief(image)}: the guest image is not in the store, "
            "and untrusted evidence cannot make this machine read or download it. Pull it (virtainers images pull "
            "IMAGE), or use --trust"
        )
    present = launcher.guests.get(image, expected.spec.arch)
    if present.digest != found.digest:
        raise ImageError(
            f"{shown(evidence.folder)} needs {image} with sha256 {found.digest}, but the current {image} has sha256 "
            f"{present.digest}. Keep guest images as long as their evidence (virtainers store ls), or keep flat "
            "disks (virtainers resume --export)"
        )
    return present


def launch(launcher: Launcher, evidence: Evidence) -> VM:
    """Start the VM, without waiting for SSH, which may not work.

    Raises:
        SpecError: a file of the folder is missing or not valid.
        ImageError: the guest image is no longer available.
        EngineError: the container does not start.
    """
    login = KeyPair(_login_key(evidence.folder), "")
    saved = SavedVM(
        evidence.manifest.spec,
        guest=guest(launcher, evidence),
        user=evidence.manifest.user,
        keys=Keys(login, KeyPair("", evidence.manifest.host_key)),
        environment={Variable.RESUME: MEMORY} if evidence.has_memory else {},
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
    """Yield the content of the VM's folder as a tar stream."""
    yield from _file(protocol.OVERLAY, evidence, OVERLAY)
    if evidence.has_memory:
        facts = {"memory": True, "machine": evidence.manifest.machine}
        yield tar.folder("resume/")
        yield tar.entry(f"resume/{protocol.RESUME_FACTS}", json.dumps(facts).encode())
        yield from _file(f"resume/{protocol.EVIDENCE_STATE}", evidence, STATE)
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
            fact = f"does not belong to this {OVERLAY}: one of them has changed"
        raise SpecError(_untrusted(evidence.folder, fact))


def export(launcher: Launcher, evidence: Evidence, target: Path) -> None:
    """Write the VM's disk as one flat qcow2 file.

    Raises:
        SpecError, ImageError: as for `launch`, or the disk cannot be converted.
    """
    name = shown(evidence.folder / OVERLAY)
    launcher.disks.flatten(_archive(evidence), name, (guest(launcher, evidence).place,), target)
