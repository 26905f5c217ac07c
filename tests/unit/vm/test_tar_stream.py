"""The parser of tar streams: it reads the streams of the standard library; others are errors, and cheap."""

import io
import struct
import tarfile
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_virtainers.vm import tar_stream
from pytest_virtainers.vm.tar_stream import BrokenStream, Kind, Member, TarStream

MIB = 1024 * 1024
KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.DIRTYPE: Kind.FOLDER,
    tarfile.SYMTYPE: Kind.LINK,
    tarfile.LNKTYPE: Kind.HARD_LINK,
    tarfile.FIFOTYPE: Kind.FIFO,
    tarfile.CHRTYPE: Kind.CHARACTER_DEVICE,
    tarfile.BLKTYPE: Kind.BLOCK_DEVICE,
}


class Collector:
    """Keeps the members and their content, unless `forget` is set."""

    def __init__(self, *, forget: bool = False) -> None:
        self.members: list[tuple[Member, bytearray]] = []
        self.count = 0
        self._forget = forget

    def begin(self, member: Member) -> None:
        self.count += 1
        if not self._forget:
            self.members.append((member, bytearray()))

    def write(self, offset: int, data: bytes) -> None:
        if not self._forget:
            content = self.members[-1][1]
            content += bytes(offset - len(content)) + data

    def end(self) -> None:
        pass


def parsed(sent: bytes, piece: int = 4096) -> tuple[TarStream, list[tuple[Member, bytearray]]]:
    collector = Collector()
    stream = TarStream(collector)
    for at in range(0, len(sent), piece):
        stream.feed(sent[at : at + piece])
    return stream, collector.members


def header(kind: bytes = b"0", size: int = 0, name: bytes = b"x", **fields: bytes) -> bytes:
    """Return one header with a valid checksum; fields, by their names in `PLACES`, are inserted unchanged."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = b"%011o\0" % size if size >= 0 else struct.pack(">Bxxxq", 0xFF, size)
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\00000"
    for field, value in fields.items():
        block[PLACES[field] : PLACES[field] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


PLACES = {
    "mode": 100,
    "size": 124,
    "mtime": 136,
    "sparse": 386,
    "more": 482,
    "real": 483,
    "magic": 257,
    "prefix": 345,
}
END = bytes(1024)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(*records: bytes) -> bytes:
    content = b""
    for each in records:
        size = len(each) + 2
        while len(b"%d" % size) + len(each) + 2 != size:
            size = len(b"%d" % size) + len(each) + 2
        content += b"%d %s\n" % (size, each)
    return header(b"x", len(content)) + padded(content)


PATHS = st.text(st.characters(codec="utf-8", exclude_characters="/\0\udcff"), min_size=1, max_size=120)


@settings(deadline=None)
@given(
    members=st.lists(
        st.tuples(
            st.lists(PATHS, min_size=1, max_size=3).map("/".join),
            st.sampled_from(sorted(KINDS)),
            st.integers(0, 0o7777),
            st.integers(0, 2**33),
            st.binary(max_size=3000),
            PATHS,
        ),
        max_size=5,
    ),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    piece=st.sampled_from([1, 511, 512, 513, 4096, 10**6]),
)
def test_what_the_standard_library_writes_is_read_back(
    members: list[tuple[str, bytes, int, int, bytes, str]], form: int, piece: int
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=form) as tar:
        for name, kind, mode, mtime, content, target in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.mtime, entry.linkname = kind, mode, mtime, target
            entry.devmajor, entry.devminor = 8, 1
            entry.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(content))
    stream, found = parsed(archive.getvalue(), piece)
    assert stream.whole
    for (name, kind, mode, mtime, content, target), (member, arrived) in zip(members, found, strict=True):
        wanted = name.encode() + (b"/" if kind == tarfile.DIRTYPE else b"")
        assert (member.name.rstrip(b"/"), member.kind) == (wanted.rstrip(b"/"), KINDS[kind])
        assert (member.mode, member.mtime) == (mode, mtime * 10**9)
        if kind == tarfile.REGTYPE:
            assert bytes(arrived) == content
        elif member.kind in (Kind.LINK, Kind.HARD_LINK):
            assert member.target == target.encode()


@pytest.mark.parametrize("piece", [1, 512, 10**6])
def test_content_never_reaches_beyond_its_size(piece: int) -> None:
    sent = header(size=3) + padded(b"abc") + header(name=b"y", size=512) + b"d" * 512 + END + b"garbage" * 1000
    stream, found = parsed(sent, piece)
    assert stream.whole
    assert [(member.name, bytes(content)) for member, content in found] == [(b"x", b"abc"), (b"y", b"d" * 512)]


@pytest.mark.parametrize(
    ("text", "mtime"),
    [
        (b"1700000000.5", 1_700_000_000_500_000_000),
        (b"1.1234567899", 1_123_456_789),
        (b"-1.5", -1_500_000_000),
        (b"0", 0),
        (b"9999999999999999999", 2**34 * 10**9),
    ],
)
def test_times_have_fractions_and_are_limited_to_what_file_systems_accept(text: bytes, mtime: int) -> None:
    ((member, _),) = parsed(pax(b"mtime=" + text) + header() + END)[1]
    assert member.mtime == mtime


def test_pax_records_replace_what_the_header_says_for_one_member() -> None:
    records = pax(b"path=long", b"linkpath=there", b"size=3", b"comment=" + b"c" * 5000, b"SCHILY.xattr.x=\0\n\xff")
    _, found = parsed(records + header() + padded(b"abc") + header(b"2", name=b"y") + END)
    assert [(each.name, each.target, bytes(content)) for each, content in found] == [
        (b"long", b"there", b"abc"),
        (b"y", b"", b""),
    ]


BROKEN = {
    "text": b"tar: command not found\n" * 100,
    "zeros, then garbage in a header": bytes(100) + b"x" * 412,
    "a wrong checksum": bytearray(header()).replace(b"ustar", b"USTAR"),
    "garbage between two members": header() + b"\x01" * 512 + header() + END,
    "an unknown type": header(b"Z"),
    "no octal number": header(size=0, mode=b"rw-r--r-"),
    "an underscore in a number": header(size=0, mode=b"0_0644\0\0"),
    "a negative size": header(size=-512),
    "a negative size of a long name": header(b"L", size=-512),
    "a long name of 8 GiB": header(b"L", size=8**11 - 1),
    "a long link of 9 MiB": header(b"K", size=9 * MIB),
    "long names without end": (header(b"L", size=512) + bytes(512)) * (2 * MIB // 1024),
    "a pax header of 8 GiB": header(b"x", size=8**11 - 1),
    "a global pax header of 8 GiB": header(b"g", size=8**11 - 1),
    "a pax record without a length": header(b"x", 512) + padded(b"x path=x\n"),
    "a pax record that is longer than its header": header(b"x", 10) + padded(b"99 path=x\n"),
    "a pax record without a newline": header(b"x", 10) + padded(b"10 path=xy"),
    "a pax record of no length": header(b"x", 10) + padded(b"0 path=x\n\n"),
    "a pax record of negative length": header(b"x", 11) + padded(b"-9 path=x\n\n"),
    "a pax record of digits": header(b"x", MIB // 2) + b"1" * (MIB // 2),
    "a pax size that is not a number": pax(b"size=1e9") + header(),
    "a pax size of many digits": pax(b"size=" + b"9" * 5000) + header(),
    "a pax time that is not a number": pax(b"mtime=nan") + header(),
    "a sparse map of too many numbers": pax(b"GNU.sparse.size=9", b"GNU.sparse.map=" + b"0," * 40_000) + header(),
    "a sparse map that goes back": pax(b"GNU.sparse.size=99", b"GNU.sparse.map=9,1,0,1") + header(size=2),
    "a sparse map that overlaps": pax(b"GNU.sparse.size=99", b"GNU.sparse.map=0,9,5,9") + header(size=18),
    "a sparse map beyond the size": pax(b"GNU.sparse.size=9", b"GNU.sparse.map=5,9") + header(size=9),
    "a sparse map of more than there is": pax(b"GNU.sparse.size=99", b"GNU.sparse.map=0,50") + header(size=9),
    "a sparse size without end": pax(b"GNU.sparse.size=9999999999999999999", b"GNU.sparse.map=0,1") + header(size=1),
    "an invalid sparse map in the content": pax(b"GNU.sparse.major=1", b"GNU.sparse.realsize=9")
    + header(size=512)
    + b"x" * 512,
    "a sparse map in the content without end": pax(b"GNU.sparse.major=1", b"GNU.sparse.realsize=9")
    + header(size=512)
    + b"9999999999\n"
    + b"1\n" * MIB,
    "an old sparse map without end": header(b"S", more=b"\1", real=b"00000000009\0")
    + (bytes(504) + b"\1" + bytes(7)) * (2 * MIB // 512),
    "an old sparse map of negative numbers": header(b"S", sparse=b"\xff" * 24, real=b"00000000009\0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_streams_are_errors_and_cheap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "_MAX_HEADERS", MIB)
    monkeypatch.setattr(tar_stream, "_MAX_POINTS", 10_000)
    sent = bytes(BROKEN[name])
    tracemalloc.start()
    try:
        with pytest.raises(BrokenStream, match=r"damaged|unknown type b'Z'|headers of more than 1 MiB"):
            parsed(sent + bytes(512))
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 600, 1024, 1536])
def test_a_truncated_stream_is_incomplete(size: int) -> None:
    sent = header(size=600) + padded(b"x" * 600) + bytes(512)
    stream, _ = parsed(sent[:size])
    assert not stream.whole
    assert parsed(sent)[0].whole


def test_many_members_use_no_memory() -> None:
    stream = TarStream(Collector(forget=True))
    many = header() * 100
    tracemalloc.start()
    try:
        for _ in range(50):
            stream.feed(many)
        assert tracemalloc.get_traced_memory()[1] < MIB // 2
    finally:
        tracemalloc.stop()


@settings(deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.builds(
                header,
                st.sampled_from([bytes([each]) for each in b"\x000123456SxgLKVDZ"]),
                st.integers(-1000, 3000),
                st.binary(max_size=100),
                mode=st.binary(max_size=8),
                sparse=st.binary(max_size=96),
                more=st.binary(max_size=1),
                real=st.binary(max_size=12),
                magic=st.sampled_from([b"ustar\0", b"ustar ", b""]),
            ),
            st.binary(max_size=512).map(padded),
            st.lists(st.sampled_from([b"path", b"size", b"mtime", b"GNU.sparse.major", b"GNU.sparse.map"])).map(
                lambda keys: pax(*(each + b"=1" for each in keys))
            ),
            st.just(bytes(512)),
        ),
        max_size=8,
    ),
    piece=st.sampled_from([100, 512, 4096]),
)
@example(parts=[header(b"S", more=b"\1"), bytes(512)], piece=512)
def test_any_bytes_yield_members_or_an_error(parts: list[bytes], piece: int) -> None:
    sent = b"".join(parts)
    try:
        _, found = parsed(sent, piece)
    except BrokenStream:
        return
    for member, content in found:
        assert len(content) <= max(member.size, 0)
        assert 0 <= member.mode <= 0o7777
