"""The overlay: a qcow2 file with this VM's writes, on top of the guest disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from virtainer import qcow2
from virtainer.events import note
from virtainer.exit_reasons import End, Reason
from virtainer.guest_disk import no_room
from virtainer.protocol import OVERLAY
from virtainer.tools import ToolError, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from virtainer.guest_disk import Base


def prepare(base: Base, directory: Path, size: int) -> Callable[[], Path]:
    """Check the directory's overlay on this guest disk, or begin to create one; the returned function waits for it.

    `size` (bytes) is what the guest sees of a new overlay, or the guest disk's own size if that is larger.
    """
    found = path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if found.exists():
            _accept(found, base)
            return lambda: found
        return _create(found, base, max(size, base.size))
    except OSError as error:
        raise no_room(directory, error) from None


def path(directory: Path) -> Path:
    """Return the path of a directory's overlay."""
    return directory / OVERLAY


def open_file(path: Path, *, direct: bool) -> int:
    """Return a descriptor for QEMU, which bypasses the page cache if the cache mode does."""
    try:
        return os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0))
    except OSError as error:
        if direct and error.errno == errno.EINVAL:
            raise End(
                Reason.STORAGE,
                f"{path} is on a file system without direct I/O: DISK_CACHE=none and directsync are impossible there",
            ) from None
        raise no_room(path.parent, error) from None


def _create(path: Path, base: Base, size: int) -> Callable[[], Path]:
    part = path.with_name(path.name + ".part")
    # -u: do not open the guest disk again, its format and size are known.
    made = start(
        *("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", base.format),
        *("-b", str(base.path.resolve())),  # /image is often a link, and other containers lack it
        *(str(part), str(size)),
    )

    def finish() -> Path:
        try:
            made()
            base_record(path).write_text(base.fingerprint + "\n")
            return part.replace(path)
        except ToolError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise End(
                Reason.STORAGE,
                f"cannot make the overlay {path}: {error}. IMAGE_DIR needs a writable folder with room",
            ) from None
        except OSError as error:
            raise no_room(path.parent, error) from None

    return finish


def _accept(path: Path, base: Base) -> None:
    record = base_record(path)
    made_on = record.read_text().strip() if record.exists() else None
    try:
        header = read_header(path)
        complaint = objection(header, base, made_on)
    except qcow2.Refused as refused:
        complaint = f"{refused}: remove it"
    if complaint:
        raise End(Reason.STORAGE, f"the overlay {path} {complaint}, or give this VM another IMAGE_DIR")
    note(f"using the overlay {path} again ({header.size / 2**30:.1f} GiB)")


def read_header(path: Path) -> qcow2.Header:
    """Read the header of an overlay, which no program of QEMU has opened; raises OSError or qcow2.Refused."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not block
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise qcow2.Refused("is not a regular file")
        return qcow2.parse(os.pread(file, qcow2.HEAD_BYTES, 0))
    finally:
        os.close(file)


def objection(header: qcow2.Header, base: Base, made_on: str | None) -> str | None:
    """Return why an overlay cannot be used again, by its header and the recorded fingerprint.

    An overlay from elsewhere has no record: then only a guest disk that is larger than it is noticed.
    """
    if made_on and made_on != base.fingerprint:
        return (
            f"was made on another guest disk ({made_on}) than {base.path} ({base.fingerprint}): "
            "mount the former one, remove the overlay"
        )
    if header.size < base.size:
        return f"is smaller than {base.path}, so it was made on another guest disk: remove it"
    return None


def base_record(path: Path) -> Path:
    """Return the path of the file with the fingerprint of an overlay's guest disk."""
    return path.with_suffix(".base")
