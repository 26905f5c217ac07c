"""The header of a qcow2 file, checked before one of QEMU's tools opens the file.

The header can name other files, which QEMU opens with the rights of its user: a backing file, and a file with the
guest's data. It can also announce tables of any size.

https://www.qemu.org/docs/master/interop/qcow2.html
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HEAD_BYTES = 2 * 2**20
"""The number of bytes that hold any header: one cluster of the largest size."""

_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")  # what versions 2 and 3 have in common
_MORE = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_MAGIC = b"QFI\xfb"
_DATA_FILE, _HARMLESS = 1 << 2, 0b11011  # incompatible features: dirty, corrupt, compression type, extended L2
_END, _DATA_FILE_NAME, _LUKS = 0, 0x44415441, 0x0537BE77
_CLUSTER_BITS = range(9, 22)
_LONGEST_NAME = 1023
_LARGEST_DISK = 2**50
_L1_ENTRIES = 32 * 2**20 // 8
_REFCOUNT_TABLE_BYTES = 8 * 2**20
_SNAPSHOTS = 65536


class Header(NamedTuple):
    """The fields of a header."""

    size: int  # bytes that the guest sees
    backing: str  # as in the header; empty: none
    snapshots: int


class Refused(ValueError):
    """A header that QEMU must not read; the text says why, with the file as its subject."""


def complaint(head: bytes) -> str | None:
    """Return why a file that starts with `head`, its first `HEAD_BYTES`, is refused; a backing file is allowed."""
    try:
        parse(head)
    except Refused as refused:
        return str(refused)
    return None


def parse(head: bytes) -> Header:
    """Read the header of a file that starts with `head`, its first `HEAD_BYTES`; raise `Refused`."""
    if not head.startswith(_MAGIC):
        raise Refused("is not qcow2")
    if len(head) < _FIXED.size:
        raise Refused("is cut short within its header")
    (
        _,
        version,
        name_at,
        name_length,
        cluster_bits,
        size,
        encryption,
        l1_size,
        l1_at,
        counts_at,
        counts,
        snapshots,
        _,
    ) = _FIXED.unpack_from(head)
    if version not in {2, 3}:
        raise Refused(f"is qcow2 of version {version}, not of 2 or 3")
    if encryption:
        raise Refused("is encrypted")
    if cluster_bits not in _CLUSTER_BITS:
        raise Refused(f"has clusters of 2^{cluster_bits} bytes, not of 2^9 to 2^21")
    cluster = 1 << cluster_bits
    if not 0 < size <= _LARGEST_DISK:
        raise Refused(f"is a disk of {size} bytes, not of 1 to 2^50")
    if l1_size > _L1_ENTRIES or counts * cluster > _REFCOUNT_TABLE_BYTES or snapshots > _SNAPSHOTS:
        raise Refused("has tables that are larger than QEMU takes")
    if l1_at % cluster or counts_at % cluster:
        raise Refused("has tables that do not start at a cluster")
    _check_extensions(head, cluster, _extensions_at(head, version, cluster))
    return Header(size, _name(head, cluster, name_at, name_length), snapshots)


def _extensions_at(head: bytes, version: int, cluster: int) -> int:
    """Return where the header's extensions start; raise `Refused` for features that lead to another file."""
    if version == 2:  # noqa: PLR2004
        return _FIXED.size
    if len(head) < _FIXED.size + _MORE.size:
        raise Refused("is cut short within its header")
    incompatible, _, _, _, length = _MORE.unpack_from(head, _FIXED.size)
    if incompatible & _DATA_FILE:
        raise Refused("keeps its data in another file")
    if unknown := incompatible & ~(_DATA_FILE | _HARMLESS):
        raise Refused(f"needs features that are not known (incompatible bits {unknown:#x})")
    if not _FIXED.size + _MORE.size <= length <= min(cluster, len(head)) or length % 8:
        raise Refused(f"has a header of {length} bytes")
    return int(length)


def _check_extensions(head: bytes, cluster: int, at: int) -> None:
    end = min(cluster, len(head))
    while at + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(head, at)
        at += _EXTENSION.size
        if kind == _END:
            return
        if kind == _DATA_FILE_NAME:
            raise Refused("names another file for its data")
        if kind == _LUKS:
            raise Refused("is encrypted")
        if length > end - at:
            raise Refused("has a header extension that is longer than its header")
        at += -(-length // 8) * 8


def _name(head: bytes, cluster: int, at: int, length: int) -> str:
    """Return the name of the backing file."""
    if not at:
        return ""
    if length > _LONGEST_NAME or at + length > min(cluster, len(head)):
        raise Refused("has the name of a backing file outside of its header")
    return head[at : at + length].decode(errors="replace")
