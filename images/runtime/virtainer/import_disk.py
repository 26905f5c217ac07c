"""The command `import-disk`: check a disk from elsewhere, and convert it to one qcow2 file for the store.

It runs in a helper container that may write to the store, so QEMU's tools run as an unprivileged user, on files that
were opened for them, and with limits.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from virtainer import formats
from virtainer.tools import Limits, Stopped, ToolError, check_disk, limits_for, run_limited

DISK = "disk.qcow2"
_USER = "qemu"
_MADE = "made"
_NO_ROOM = ("no space left on device", "read-only file system", "quota exceeded")
# A compressed VMDK may grow by this factor.
_MOST_GROWTH = 16
_METADATA_BYTES = 2**30
_LARGEST_WRITE = 2**22


def take(folder: Path, seconds: float | None = None) -> dict[str, Any]:
    """Check the disk in a folder, which may be of any format, and convert it to a read-only qcow2 file.

    Args:
        folder: a folder with the disk, and nothing else.
        seconds: the limit of each step; by default one by the disk's size.

    Returns:
        `format` as it came, `virtual_size`, and `stored_sha256` unless the file stayed as it was; or `refused` and
        what is said about the disk; or `failed` and what failed here.
    """
    disk = folder / DISK
    try:
        with disk.open("rb") as file:
            found = formats.inspect(file)
            os.fchmod(file.fileno(), 0o444)
            size = os.fstat(file.fileno()).st_size
            if found.format != "raw":
                check_disk(file.fileno(), found.format, _within(limits_for(size), seconds), _USER)
            if found.format != "qcow2":  # empty blocks of a raw disk use no space any more
                limits = limits_for(size, min(found.size, _MOST_GROWTH * size) + _METADATA_BYTES)
                _convert(file.fileno(), found.format, folder / _MADE, _within(limits, seconds))
    except formats.Unusable as refusal:
        return {"refused": str(refusal)}
    except Stopped as error:
        return {"refused": f"takes more work than an honest disk of its size: {error}"}
    except ToolError as error:
        if any(words in str(error).lower() for words in _NO_ROOM):
            return {"failed": str(error)}
        return {"refused": f"is damaged or cut short: {error}"}
    facts = {"format": found.format, "virtual_size": found.size}
    if found.format == "qcow2":
        return facts
    (folder / _MADE).replace(disk)
    with disk.open("rb") as file:
        os.fchmod(file.fileno(), 0o444)
        return {**facts, "stored_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _convert(file: int, form: str, target: Path, limits: Limits) -> None:
    made = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fchmod(made, 0o666)  # the tool's user opens it again; the folder above is closed to all
        words = ("-q", "-f", form, "-O", "qcow2", f"/proc/self/fd/{file}", f"/proc/self/fd/{made}")
        try:
            run_limited("qemu-img", "convert", *words, limits=limits, files=(file, made), user=_USER)
        except ToolError as error:  # QEMU ignores the signal of this limit
            if os.fstat(made).st_size + _LARGEST_WRITE > limits.written_bytes:
                raise Stopped(
                    f"qemu-img convert wrote more than {limits.written_bytes >> 20} MiB", error.code
                ) from None
            raise
        os.fsync(made)
    finally:
        os.close(made)


def _within(limits: Limits, seconds: float | None) -> Limits:
    return limits if seconds is None else limits._replace(seconds=seconds)


def main(arguments: list[str]) -> int:
    """Run the command: exit code 0 with any answer, 2 for wrong usage."""
    if not 1 <= len(arguments) <= 2:  # noqa: PLR2004
        print("usage: import-disk FOLDER [SECONDS]", file=sys.stderr)
        return 2
    print(json.dumps(take(Path(arguments[0]), *map(float, arguments[1:]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
