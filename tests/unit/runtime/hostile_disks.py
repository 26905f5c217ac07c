"""Hostile disks with every known trick, built byte by byte, and the message for each."""

from __future__ import annotations

import struct
from typing import NamedTuple

TRAP = "/tmp/trap"
"""The file that a hostile disk names. No one may open it."""
BOOT_SECTOR = b"\xeb\x63\x90".ljust(510, b"\0") + b"\x55\xaa"
CLUSTER = 2**16
WHOLE = "make it whole first, with qemu-img convert -O qcow2"


class Disk(NamedTuple):
    """A disk's name and content, and the message that refuses it (empty: it is accepted)."""

    name: str
    content: bytes
    words: str = ""


def qcow2(
    *extensions: tuple[int, bytes],
    version: int = 3,
    backing: bytes = b"",
    cluster_bits: int = 16,
    size: int = 2**20,
    encryption: int = 0,
    l1_entries: int = 1,
    snapshots: int = 0,
    features: int = 0,
    header_length: int = 104,
    refcount_clusters: int = 1,
) -> bytes:
    """Return a qcow2 file without data: header, refcount table and block, L1 table, each in a separate cluster."""
    listed = b"".join(
        struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in [*extensions, (0, b"")]
    )
    name_at = (header_length if version == 3 else 72) + len(listed) if backing else 0
    head = struct.pack(
        ">4sIQIIQII", b"QFI\xfb", version, name_at, len(backing), cluster_bits, size, encryption, l1_entries
    )
    head += struct.pack(">QQIIQ", 3 * CLUSTER, CLUSTER, refcount_clusters, snapshots, 0)
    if version == 3:
        head += struct.pack(">QQQII", features, 0, 0, 4, header_length)
    clusters = [
        (head.ljust(min(header_length, CLUSTER), b"\0") if version == 3 else head) + listed + backing,
        struct.pack(">Q", 2 * CLUSTER),
        struct.pack(">4H", 1, 1, 1, 1),
        bytes(8),
    ]
    return b"".join(each.ljust(CLUSTER, b"\0") for each in clusters)


def vmdk(
    descriptor: str = 'version=1\ncreateType="monolithicSparse"\nRW 2048 SPARSE "disk.vmdk"\n',
    *,
    capacity: int = 2048,
    version: int = 1,
    descriptor_at: int = 1,
    directory: int = 26,
    granularity: int = 128,
    end: bytes = b"",
) -> bytes:
    """Return a VMDK file without data: header, descriptor, grain directory with one table."""
    head = struct.pack(
        *("<4sIIQQQQIQQQB4sH", b"KDMV", version, 3, capacity, granularity, descriptor_at, 20, 512),
        *(21, directory, 128, 0, b"\n \r\n", 0),
    )
    tables = b"".join(struct.pack("<I", at).ljust(512, b"\0") + bytes(2048) for at in (22, 27))
    text = f"# Disk DescriptorFile\nCID=fffffffe\nparentCID=ffffffff\n{descriptor}".encode()
    return (head.ljust(512, b"\0") + text.ljust(20 * 512, b"\0") + tables).ljust(CLUSTER, b"\0") + end


def vhdx(
    *, size: int = 2**20, flags: int = 0, parent: bool = False, regions: int = 2, twice: bool = False, cut: int = 0
) -> bytes:
    """Return the parts of a VHDX file that describe it."""
    metadata = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
    region = struct.pack("<4sIII", b"regi", 0, regions, 0)
    region += struct.pack("<16sQII", bytes.fromhex("6677c22d23f600429d64115e9bfd4a08"), 2**21, 2**20, 1)
    region += struct.pack("<16sQII", metadata, 2**20, 2**20, 1)
    items = [("3767a1ca36fa434db3b633f0aa44e76b", 65536), ("2442a52f1bcd7648b2115dbed83bf4b8", 65544)]
    items += [("2d5fd3a80bb34d45abf7d3d84834ab0c", 65552)] if parent else []
    items += items[:1] if twice else []
    table = struct.pack("<8sHH20s", b"metadata", 0, len(items), b"")
    table += b"".join(struct.pack("<16sIIII", bytes.fromhex(guid), at, 8, 4, 0) for guid, at in items)
    file = b"vhdxfile".ljust(192 * 1024, b"\0") + region.ljust(2**20 - 192 * 1024, b"\0")
    file += table.ljust(65536, b"\0") + struct.pack("<IIQ", 2**20, flags, size)
    return file[: len(file) - cut]


def with_boot_mark(content: bytes) -> bytes:
    """Return a file that ends its first sector as a boot sector does."""
    return content.ljust(1024, b"\0")[:510] + b"\x55\xaa" + bytes(512)


def snapshots(count: int, l1_entries: int) -> bytes:
    """Return a qcow2 file of a few MiB that keeps `qemu-img check` busy for hours.

    All its snapshots have the same long L1 table, which is read again for each of them.
    """
    entry = struct.pack(">QIHHIIQII", 5 * CLUSTER, l1_entries, 1, 0, 0, 0, 0, 0, 16) + struct.pack(">QQ", 0, 2**20)
    entry = (entry + b"1").ljust(-(-(len(entry) + 1) // 8) * 8, b"\0")
    table = entry * count
    head = bytearray(qcow2(l1_entries=1, snapshots=count))
    # Each count of 64 bits, so that no cluster has been referred to too often.
    struct.pack_into(">II", head, 96, 6, 104)
    tables_at = 5 * CLUSTER + -(-l1_entries * 8 // CLUSTER) * CLUSTER
    struct.pack_into(">Q", head, 64, tables_at)
    l2 = struct.pack(">Q", 1 << 63 | 4 * CLUSTER)
    return (
        bytes(head).ljust(4 * CLUSTER, b"\0")
        + bytes(CLUSTER)
        + (l2 * l1_entries).ljust(tables_at - 5 * CLUSTER, b"\0")
        + table
    )


_DESCRIPTOR = f'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 2048 FLAT "{TRAP}" 0\n'
_FLAT = _DESCRIPTOR.partition("\n")[2]
_DATA_FILE, _LUKS, _FEATURE_NAMES = 0x44415441, 0x0537BE77, 0x6803F857
_JSON = b'json:{"driver":"qcow2","file":{"driver":"file","filename":"/tmp/trap"}}'
_DAMAGED, _NEITHER = (
    "is damaged or cut short",
    "is neither a qcow2, VMDK or VHDX image nor a raw disk with a boot sector",
)

REFUSED = [
    # qcow2
    Disk("overlay", qcow2(backing=TRAP.encode()), f"is an overlay of {TRAP}: {WHOLE}"),
    Disk("overlay-of-version-2", qcow2(version=2, backing=TRAP.encode()), "is an overlay of"),
    Disk("overlay-by-json", qcow2(backing=_JSON), "is an overlay of json:"),
    Disk("overlay-with-a-strange-name", qcow2(backing=b"\x1b]0;x\x07\n\xff"), "is an overlay of ?]0;x??"),
    Disk("data-file", qcow2((_DATA_FILE, TRAP.encode()), features=4), "keeps its data in another file"),
    Disk("data-file-by-json", qcow2((_DATA_FILE, _JSON), features=4), "keeps its data in another file"),
    Disk("data-file-without-its-bit", qcow2((_DATA_FILE, TRAP.encode())), "names another file for its data"),
    Disk(
        "data-file-behind-another-extension", qcow2((_FEATURE_NAMES, bytes(48)), (_DATA_FILE, b"x")), "names another"
    ),
    Disk("bit-without-a-data-file", qcow2(features=4), "keeps its data in another file"),
    Disk("encrypted", qcow2(encryption=1), "is encrypted"),
    Disk("luks-in-qcow2", qcow2((_LUKS, bytes(16)), encryption=2), "is encrypted"),
    Disk("unknown-features", qcow2(features=1 << 40), "needs features that are not known"),
    Disk("version-1", qcow2(version=1), "is qcow2 of version 1"),
    Disk("no-room", qcow2(size=0), "is a disk of 0 bytes"),
    Disk("too-large", qcow2(size=2**47), "has 128 TiB, by its header: a disk may have 64 TiB"),
    Disk("small-clusters", qcow2(cluster_bits=3), "has clusters of 2^3 bytes"),
    Disk("large-clusters", qcow2(cluster_bits=63), "has clusters of 2^63 bytes"),
    Disk("large-l1", qcow2(l1_entries=2**32 - 1), "has tables that are larger than QEMU takes"),
    Disk("large-refcounts", qcow2(refcount_clusters=2**32 - 1), "has tables that are larger than QEMU takes"),
    Disk("many-snapshots", qcow2(snapshots=2**32 - 1), "has tables that are larger than QEMU takes"),
    Disk("large-header", qcow2(header_length=2**32 - 8), "has a header of 4294967288 bytes"),
    Disk("short-header", qcow2(header_length=72), "has a header of 72 bytes"),
    Disk(
        "long-extension", qcow2()[:104] + struct.pack(">II", 1, 2**32 - 1) + bytes(CLUSTER), "has a header extension"
    ),
    Disk("magic-alone", b"QFI\xfb", "is cut short within its header"),
    Disk("qcow2-and-boot-sector", with_boot_mark(qcow2(backing=TRAP.encode())[:500]), "is an overlay of"),
    # VMDK
    Disk("vmdk-of-capacity-0", vmdk(_FLAT, capacity=0), "is a VMDK with a capacity of 0"),
    Disk(
        "vmdk-of-capacity-0-elsewhere", vmdk(capacity=0, descriptor_at=128, end=_DESCRIPTOR.encode()), "capacity of 0"
    ),
    Disk("vmdk-with-a-parent", vmdk(f'parentFileNameHint="{TRAP}"\n'), "is an overlay of another VMDK file"),
    Disk(
        "vmdk-with-a-hidden-parent",
        vmdk().replace(b'"disk.vmdk"\n' + bytes(50), b'"disk.vmdk"\n\0parentFileNameHint="x"'.ljust(62, b"\0")),
        "is an overlay of another VMDK file",
    ),
    Disk("vmdk-flat", vmdk(_FLAT), "is a VMDK of another kind (monolithicFlat)"),
    Disk(
        "vmdk-of-two-files",
        vmdk('createType="monolithicSparse"\nRW 1 SPARSE "a"\nRW 1 FLAT "/tmp/trap" 0\n'),
        f"keeps its data in other files (a, {TRAP})",
    ),
    Disk(
        "vmdk-with-a-path",
        vmdk(f'createType="streamOptimized"\nRW 1 SPARSE "{TRAP}"\n'),
        "keeps its data in other files",
    ),
    Disk("vmdk-without-descriptor", vmdk(descriptor_at=0), "has no VMDK descriptor behind its header"),
    Disk("vmdk-of-version-9", vmdk(version=9), "is of VMDK version 9"),
    Disk("vmdk-without-footer", vmdk(directory=2**64 - 1), f"{_DAMAGED}: it has no VMDK footer"),
    Disk(
        "vmdk-with-two-faces",
        vmdk(directory=2**64 - 1, end=vmdk(capacity=4096)[:512] + bytes(512)),
        "header and footer differ",
    ),
    Disk("vmdk-without-grains", vmdk(granularity=0), "names impossible sizes"),
    Disk("vmdk-magic-alone", b"KDMV", f"{_DAMAGED}: its VMDK header is not whole"),
    Disk("vmdk-too-large", vmdk(capacity=2**56), "a disk may have 64 TiB"),
    Disk("descriptor", _DESCRIPTOR.encode(), _NEITHER),
    Disk(
        "descriptor-and-boot-sector",
        with_boot_mark(_DESCRIPTOR.encode()),
        f"{_NEITHER} (55 AA at byte 510): it begins with text",
    ),
    Disk(
        "descriptor-after-a-line", with_boot_mark(b"\n\n# a comment\n" + _DESCRIPTOR.encode()), "it begins with text"
    ),
    Disk("vmfs-sparse", with_boot_mark(b"COWD"), "is a VMDK (COWD) image, or looks like one"),
    # VHDX
    Disk("vhdx-with-a-parent", vhdx(flags=2), f"is an overlay of another VHDX file: {WHOLE}"),
    Disk("vhdx-with-a-parent-locator", vhdx(parent=True), "is an overlay of another VHDX file"),
    Disk("vhdx-with-two-sizes", vhdx(twice=True), "its VHDX tables name a thing twice"),
    Disk("vhdx-with-many-regions", vhdx(regions=2**32 - 1), "its VHDX tables are not whole"),
    Disk("vhdx-cut-short", vhdx(cut=12), "its VHDX metadata is not whole"),
    Disk("vhdx-magic-alone", b"vhdxfile", "its VHDX tables are missing"),
    Disk("vhdx-of-no-size", vhdx(size=0), "has no room at all"),
    # the rest
    Disk("luks", with_boot_mark(b"LUKS\xba\xbe\0\1"), "is a LUKS image"),
    Disk("vpc", with_boot_mark(b"conectix"), "is a VPC (VHD) image"),
    Disk(
        "vdi",
        with_boot_mark(b"<<< Oracle VM VirtualBox Disk Image >>>".ljust(64, b"\0") + b"\x7f\x10\xda\xbe"),
        "is a VDI image",
    ),
    Disk("qed", with_boot_mark(b"QED\0"), "is a QED image"),
    Disk("json-and-boot-sector", with_boot_mark(_JSON), "it begins with text"),
    Disk("script-and-boot-sector", with_boot_mark(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"), "it begins with text"),
    Disk("xz", b"\xfd7zXZ\0" + bytes(600), "is not a disk image: it is compressed with xz: mount it as /image.xz"),
    Disk("text", b"hello\n" * 100, _NEITHER),
    Disk("odd-size", BOOT_SECTOR + b"x", _NEITHER),
    Disk("nothing", b"", _NEITHER),
]

TAKEN = [
    Disk("plain", qcow2()),
    Disk("of-version-2", qcow2(version=2)),
    Disk("with-features", qcow2((_FEATURE_NAMES, bytes(48)), (0xE2792ACA, b"raw"), features=0b01)),
    Disk("plain-vmdk", vmdk()),
    Disk("stream", vmdk('createType="streamOptimized"\nRDONLY 2048 SPARSE "x.vmdk"\n')),
    Disk("plain-vhdx", vhdx()),
    Disk("raw", BOOT_SECTOR + bytes(512)),
    Disk(
        "gpt",
        bytes(446)
        + b"\0\0\2\0\xee\xff\xff\xff\1\0\0\0\xff\xff\xff\xff".ljust(64, b"\0")
        + b"\x55\xaa"
        + b"EFI PART".ljust(512, b"\0"),
    ),
]
