"""Headers of qcow2 files, valid and invalid ones."""

from __future__ import annotations

import struct

GIB = 2**30


def head(
    *,
    magic: bytes = b"QFI\xfb",
    version: int = 3,
    backing: bytes = b"/store/guests/debian/disk.qcow2",
    cluster_bits: int = 16,
    size: int = GIB,
    encryption: int = 0,
    l1_size: int = 2,
    l1_at: int = 3 << 16,
    counts: int = 1,
    snapshots: int = 0,
    incompatible: int = 0,
    length: int = 104,
    extensions: bytes = b"",
    name_at: int = 0x200,
) -> bytes:
    """Return the first cluster of a file."""
    start = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(magic, version, name_at if backing else 0, len(backing), cluster_bits, size, encryption),
        *(l1_size, l1_at, 1 << 16, counts, snapshots, 0),
    )
    if version == 3:
        start += struct.pack(">QQQII", incompatible, 0, 0, 4, length)
    start = (start + extensions).ljust(0x200, b"\0") + backing
    return start.ljust(1 << 16, b"\0")


def extension(kind: int, content: bytes, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return struct.pack(">II", kind, size) + content.ljust(-(-len(content) // 8) * 8, b"\0")
