"""Disk formats, determined from the headers alone: qcow2, VMDK, VHDX, raw.

A disk comes from strangers. `qemu-img` guesses the format of a file and opens what the file names: a backing file, an
external data file, an extent, a parent. So it gets only disks that passed these checks, with the format that they
found.
The checks follow what QEMU's drivers read, not what the specifications say:
https://www.qemu.org/docs/master/interop/qcow2.html, block/vmdk.c and block/vhdx.c of QEMU.
"""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO, NamedTuple

from virtainer import qcow2
from virtainer.protocol import BOOT_MARK, QCOW2, VHDX, VMDK

SECTOR = 512
MOST_BYTES = 64 * 2**40
"""The largest disk that is accepted: the limit of VHDX, and more than any guest image needs."""
NEITHER = "is neither a qcow2, VMDK or VHDX image nor a raw disk with a boot sector (55 AA at byte 510)"

_MAKE_WHOLE = "make it whole first, with qemu-img convert -O qcow2"
_DAMAGED = "is damaged or cut short"
_SHOWN = 200  # characters of a name that a file gives

_ARCHIVES = {
    b"\xfd7zXZ\x00": "compressed with xz: mount it as /image.xz, or unpack it first",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
}
# Magic numbers of QEMU's other drivers, by their offsets. Some may be within a boot sector.
_OTHERS = {
    "VDI": (64, b"\x7f\x10\xda\xbe"),
    "VPC (VHD)": (0, b"conectix"),
    "QED": (0, b"QED\0"),
    "VMDK (COWD)": (0, b"COWD"),
    "LUKS": (0, b"LUKS\xba\xbe"),
    "Parallels": (0, b"WithoutFreeSpace"),
    "Parallels (extended)": (0, b"WithouFreSpacExt"),
    "Bochs": (0, b"Bochs Virtual HD Image"),
}
# No processor's boot code begins with sixteen printable characters; a descriptor, a script and JSON do.
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{16}")

_VMDK_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_VMDK_AT_END = 0xFFFFFFFFFFFFFFFF
_VMDK_TYPES = {"monolithicSparse", "streamOptimized"}
_VMDK_DESCRIPTOR = 512
_VMDK_DESCRIPTOR_BYTES = 20 * SECTOR  # of which QEMU opens the parent
_VMDK_EXTENT = re.compile(r"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)(?:\s+\"([^\"\n]*)\")?", re.MULTILINE)

_VHDX_REGIONS = 192 * 1024  # the only copy that QEMU reads
_VHDX_TABLE_BYTES = 64 * 1024
_VHDX_METADATA = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_VHDX_FILE_PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
_VHDX_SIZE = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
_VHDX_PARENT_LOCATOR = bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")
_VHDX_HAS_PARENT = 2


class _Table(NamedTuple):
    """The structure of a table in a VHDX file: a header with the number of entries, each with GUID and offset."""

    magic: bytes
    number: struct.Struct
    number_at: int
    start: int
    entry: struct.Struct


_VHDX_REGION_TABLE = _Table(b"regi", struct.Struct("<I"), 8, 16, struct.Struct("<16sQII"))
_VHDX_METADATA_TABLE = _Table(b"metadata", struct.Struct("<H"), 10, 32, struct.Struct("<16sIIII"))


class Unusable(Exception):
    """A disk is refused; the text completes a sentence whose subject is the disk."""


class Disk(NamedTuple):
    """A disk that needs no other file."""

    format: str  # QEMU's name of it
    size: int  # bytes that the guest sees


def inspect(file: BinaryIO) -> Disk:
    """Return the format of a disk. Raises Unusable unless it is one complete disk; OSError if reading fails."""
    length = os.fstat(file.fileno()).st_size
    head = _read(file, 0, SECTOR)
    if head.startswith(QCOW2):
        disk = _qcow2(_read(file, 0, qcow2.HEAD_BYTES))
    elif head.startswith(VMDK):
        disk = _vmdk(file, head, length)
    elif head.startswith(VHDX):
        disk = _vhdx(file)
    else:
        disk = _raw(head, length)
    if disk.size <= 0:
        raise Unusable(f"{_DAMAGED}: its header says that the disk has no room at all")
    if disk.size > MOST_BYTES:
        raise Unusable(f"has {disk.size >> 40} TiB, by its header: a disk may have {MOST_BYTES >> 40} TiB")
    return disk


def _raw(head: bytes, length: int) -> Disk:
    for magic, what in _ARCHIVES.items():
        if head.startswith(magic):
            raise Unusable(f"is not a disk image: it is {what}")
    for what, (offset, magic) in _OTHERS.items():
        if head[offset:].startswith(magic):
            raise Unusable(
                f"is a {what} image, or looks like one: make it qcow2 first, with qemu-img convert -O qcow2"
            )
    if length % SECTOR or head[510:512] != BOOT_MARK:
        raise Unusable(NEITHER)
    if _TEXT.match(head):
        raise Unusable(f"{NEITHER}: it begins with text ({_shown(head[:32])})")
    return Disk("raw", length)


def _qcow2(head: bytes) -> Disk:
    try:
        header = qcow2.parse(head)
    except qcow2.Refused as refused:
        raise Unusable(
            f"{refused}; if you trust it, qemu-img convert -O qcow2 makes one of it that is taken"
        ) from None
    if header.backing:
        raise Unusable(f"is an overlay of {_shown(header.backing.encode())}: {_MAKE_WHOLE}")
    return Disk("qcow2", header.size)


def _vmdk(file: BinaryIO, head: bytes, length: int) -> Disk:
    capacity, directory, descriptor, sectors = _vmdk_header(head)
    if directory == _VMDK_AT_END:  # the header that counts is at the end
        footer = _read(file, max(0, -(-length // SECTOR) * SECTOR - 2 * SECTOR), SECTOR)
        if not footer.startswith(VMDK):
            raise Unusable(f"{_DAMAGED}: it has no VMDK footer")
        if _vmdk_header(footer)[0] != capacity:
            raise Unusable(f"{_DAMAGED}: header and footer differ")
    if descriptor != _VMDK_DESCRIPTOR // SECTOR:
        raise Unusable(
            f"has no VMDK descriptor behind its header, as a part of a disk in several files: {_MAKE_WHOLE}"
        )
    text = _read(file, _VMDK_DESCRIPTOR, max(_VMDK_DESCRIPTOR_BYTES, min(sectors, 128) * SECTOR))
    if b"parentFileNameHint" in text:
        raise Unusable(f"is an overlay of another VMDK file: {_MAKE_WHOLE}")
    words = text.partition(b"\0")[0].decode(errors="replace")
    kind = re.search(r"^\s*createType\s*=\s*\"([^\"\n]*)\"", words, re.MULTILINE)
    if kind is None or kind[1] not in _VMDK_TYPES:
        what = _shown(kind[1].encode()) if kind else "none"
        raise Unusable(f"is a VMDK of another kind ({what}) than {' and '.join(sorted(_VMDK_TYPES))}: {_MAKE_WHOLE}")
    extents = _VMDK_EXTENT.findall(words)
    if len(extents) != 1 or extents[0][0] != "SPARSE" or "/" in extents[0][1]:
        names = ", ".join(_shown(name.encode()) for _, name in extents[:5]) or "none"
        raise Unusable(f"keeps its data in other files ({names}): {_MAKE_WHOLE}")
    return Disk("vmdk", capacity * SECTOR)


def _vmdk_header(head: bytes) -> tuple[int, int, int, int]:
    """Return capacity, place of the grain directory, place and length of the descriptor, in sectors."""
    if len(head) < _VMDK_HEADER.size:
        raise Unusable(f"{_DAMAGED}: its VMDK header is not whole")
    _, version, _, capacity, granularity, descriptor, sectors, entries, _, directory, _, _, _, _ = (
        _VMDK_HEADER.unpack_from(head)
    )
    if not 1 <= version <= 3:  # noqa: PLR2004
        raise Unusable(f"is of VMDK version {version}: make it qcow2 first, with qemu-img convert -O qcow2")
    if capacity == 0:  # QEMU would take its descriptor for a list of other files
        raise Unusable(f"is a VMDK with a capacity of 0, as for a list of other files: {_MAKE_WHOLE}")
    if not 1 <= granularity <= 2**21 or not 1 <= entries <= 512:  # noqa: PLR2004  (QEMU's)
        raise Unusable(f"{_DAMAGED}: its VMDK header names impossible sizes")
    return capacity, directory, descriptor, sectors


def _vhdx(file: BinaryIO) -> Disk:
    regions = _vhdx_table(_read(file, _VHDX_REGIONS, _VHDX_TABLE_BYTES), _VHDX_REGION_TABLE)
    if _VHDX_METADATA not in regions:
        raise Unusable(f"{_DAMAGED}: its VHDX metadata is missing")
    start = regions[_VHDX_METADATA]
    items = _vhdx_table(_read(file, start, _VHDX_TABLE_BYTES), _VHDX_METADATA_TABLE)
    if _VHDX_FILE_PARAMETERS not in items or _VHDX_SIZE not in items:
        raise Unusable(f"{_DAMAGED}: its VHDX metadata is not whole")
    parameters = _read(file, start + items[_VHDX_FILE_PARAMETERS], 8)
    size = _read(file, start + items[_VHDX_SIZE], 8)
    if min(len(parameters), len(size)) < 8:  # noqa: PLR2004
        raise Unusable(f"{_DAMAGED}: its VHDX metadata is not whole")
    if struct.unpack("<II", parameters)[1] & _VHDX_HAS_PARENT or _VHDX_PARENT_LOCATOR in items:
        raise Unusable(f"is an overlay of another VHDX file: {_MAKE_WHOLE}")
    return Disk("vhdx", struct.unpack("<Q", size)[0])


def _vhdx_table(table: bytes, layout: _Table) -> dict[bytes, int]:
    """Read a table of GUIDs and offsets; each GUID may be there once."""
    if not table.startswith(layout.magic) or len(table) < layout.start:
        raise Unusable(f"{_DAMAGED}: its VHDX tables are missing")
    number = layout.number.unpack_from(table, layout.number_at)[0]
    end = layout.start + number * layout.entry.size
    if number > 2047 or end > len(table):  # noqa: PLR2004  (the specification's)
        raise Unusable(f"{_DAMAGED}: its VHDX tables are not whole")
    found: dict[bytes, int] = {}
    for guid, offset, *_ in layout.entry.iter_unpack(table[layout.start : end]):
        if guid in found:
            raise Unusable(f"{_DAMAGED}: its VHDX tables name a thing twice")
        found[guid] = offset
    return found


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    """Read a piece; less at the end of the file, nothing at an impossible offset."""
    return os.pread(file.fileno(), length, offset) if 0 <= offset < 2**63 - length else b""


def _shown(name: bytes) -> str:
    """Return a name that a stranger chose, for a line of a log."""
    text = name.partition(b"\0")[0][:_SHOWN].decode(errors="replace")
    return "".join(each if each.isprintable() else "?" for each in text) or "a file without a name"
