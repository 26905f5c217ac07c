"""The guest disk that the VM starts from: find it, fetch or unpack it, and refuse what is not a disk.

The guest disk is never written to. It comes from strangers, so it may not name other files: a backing file,
an external data file or an extent would be opened on the guest's behalf.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from virtainer.events import note
from virtainer.exit_reasons import End, Reason
from virtainer.tools import Stopped, ToolError, check_disk, limits_for

if TYPE_CHECKING:
    from virtainer.settings import Settings

IMAGE = Path("/image")
IMAGE_XZ = Path("/image.xz")

_BLOCK = 2**20  # bytes copied at a time
_MOST_BYTES = 2**40  # that are unpacked: a few kilobytes can expand to more than any disk can hold
_SAMPLES = 64
_SMALL = 4 * 2**20  # bytes; takes 10 ms


class Base(NamedTuple):
    """A guest disk that passed all checks."""

    path: Path
    format: str  # QEMU's name of it
    size: int  # bytes that the guest sees
    fingerprint: str


def find(settings: Settings) -> Base:
    """Find the guest disk (the first of IMAGE_URL, /image and /image.xz that is given) and check it."""
    if settings.image_url:
        path = fetched(settings.image_url, settings.image_dir)
    elif os.path.lexists(IMAGE):
        path = readable(IMAGE)
    elif os.path.lexists(IMAGE_XZ):
        path = unpacked(readable(IMAGE_XZ), settings.image_dir)
    else:
        raise End(
            Reason.IMAGE,
            "no guest disk: looked for IMAGE_URL, /image and /image.xz. "
            "Give one: docker run -v /path/to/disk.qcow2:/image:ro … or -e IMAGE_URL=https://…",
        )
    return inspect(path)


def readable(path: Path) -> Path:
    """Return the path; raise End unless it is a file that is not empty and can be read."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except IsADirectoryError:
        raise End(
            Reason.IMAGE,
            f"{path} is a directory: docker makes one when the path given to -v does not exist on the host",
        ) from None
    except FileNotFoundError:
        raise End(
            Reason.IMAGE,
            f"{path} is a symlink to {path.readlink()}, which does not exist in the container: mount that too",
        ) from None
    except PermissionError:
        raise End(
            Reason.IMAGE,
            f"{path} cannot be read: permission denied. Without DAC_OVERRIDE the container's root needs the read "
            "bit too: chmod a+r the file on the host",
        ) from None
    except OSError as error:
        raise End(Reason.IMAGE, f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise End(Reason.IMAGE, f"{path} is not a regular file: copy the device into a file first")
    if not status.st_size:
        raise End(Reason.IMAGE, f"{path} is empty: was its download cut short?")
    return path


def inspect(path: Path) -> Base:
    """Check a guest disk; raise End unless it is complete and needs no other file."""
    from virtainer import formats  # clones do not need it

    try:
        with path.open("rb") as file:
            found = formats.inspect(file)
            if found.format != "raw":
                check_disk(file.fileno(), found.format, limits_for(path.stat().st_size))
    except formats.Unusable as refusal:
        raise End(Reason.IMAGE, f"{path} {refusal}") from None
    except Stopped as error:
        raise End(Reason.IMAGE, f"{path} takes more work than an honest disk of its size: {error}") from None
    except ToolError as error:
        raise End(Reason.IMAGE, f"{path} is damaged or cut short: {error}. Fetch it again") from None
    return Base(path, found.format, found.size, fingerprint(path))


def fingerprint(path: Path) -> str:
    """Return a digest of a file's length and of samples of its content, which is cheap for a file of any length.

    A small one is read as a whole.
    """
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(length).encode())
        if length <= _SMALL:
            digest.update(file.read())
            return digest.hexdigest()[:32]
        for sample in range(_SAMPLES):
            digest.update(os.pread(file.fileno(), 4096, length * sample // _SAMPLES))
        digest.update(os.pread(file.fileno(), 4096, max(0, length - 4096)))
    return digest.hexdigest()[:32]


def unpacked(archive: Path, directory: Path) -> Path:
    """Unpack an .xz file into the directory, once: the next start finds the result."""
    target = directory / f"image-{fingerprint(archive)}"
    if not target.exists():
        note(f"unpacking {archive} to {target}")
        with archive.open("rb") as file:
            _keep(file, target, xz=True)
    return target


def fetched(url: str, directory: Path) -> Path:
    """Download a disk into the directory, once; a file named .xz is unpacked while it arrives."""
    import urllib.request  # takes 0.07 s, which other starts do not need

    target = directory / f"image-{hashlib.sha256(url.encode()).hexdigest()[:32]}"
    if target.exists():
        return target
    note(f"fetching {url} to {target}")
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:  # noqa: S310  (settings allow http and https only)
            body = _Counted(reply, int(reply.headers.get("Content-Length") or 0))
            _keep(body, target, xz=url.partition("?")[0].endswith(".xz"))
    except OSError as error:  # urllib's errors and time-outs are OSErrors
        raise End(Reason.IMAGE, f"IMAGE_URL {url} cannot be fetched: {error}") from None
    return target


class _Counted:
    """A download that reports its progress, and that fails when it ends before its announced length."""

    def __init__(self, reply: IO[bytes], length: int) -> None:
        self.reply, self.length = reply, length
        self.seen = 0
        self.next_report = time.monotonic() + 10

    def read(self, size: int) -> bytes:
        data = self.reply.read(size)
        self.seen += len(data)
        if not data and self.seen < self.length:
            raise OSError(f"the connection ended after {self.seen} of {self.length} bytes")
        if time.monotonic() > self.next_report:
            self.next_report += 10
            note(f"fetched {self.seen >> 20} of {self.length >> 20 or 'unknown'} MiB")
        return data


def _keep(source: IO[bytes] | _Counted, target: Path, *, xz: bool) -> None:
    """Copy a stream to the target, sparse, and under another name until it is complete."""
    import lzma

    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        plain = _within(source) if xz else source
        with part.open("wb") as file:
            while block := plain.read(_BLOCK):
                _append(file, block)
                if xz and file.tell() > _MOST_BYTES:
                    raise End(Reason.IMAGE, f"what is in the .xz file is larger than {_MOST_BYTES >> 30} GiB")
            file.truncate()
        part.replace(target)
    except EOFError:
        raise End(Reason.IMAGE, "the .xz file is truncated: fetch it again") from None
    except lzma.LZMAError as error:
        raise End(Reason.IMAGE, f"this is not an .xz file, or it is damaged: {error}") from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT}:
            raise no_room(target.parent, error) from None
        raise
    finally:
        part.unlink(missing_ok=True)


def _within(source: IO[bytes] | _Counted) -> IO[bytes]:
    """Yield the content of an .xz file, which may have several streams."""
    import lzma

    return lzma.LZMAFile(source)  # type: ignore[arg-type]  # it only reads


def _append(file: IO[bytes], data: bytes) -> None:
    """Write data, with holes for blocks of zeros, so that a raw disk uses no more space than it needs."""
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        if block.count(0) == len(block):
            file.seek(len(block), os.SEEK_CUR)
        else:
            file.write(block)


def no_room(directory: Path, error: OSError) -> End:
    """Return the End for a directory into which the VM cannot write."""
    return End(
        Reason.STORAGE,
        f"IMAGE_DIR {directory} cannot be written: {error.strerror}. Mount a writable folder or volume with room "
        f"there; without DAC_OVERRIDE the container's root must own it, or it must be open to all (chmod a+rwx)",
    )
