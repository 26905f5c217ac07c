import io
import tarfile
from pathlib import Path

import pytest

from pytest_virtainers.engine import tar
from pytest_virtainers.engine.tar import Link


def members(archive: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return opened.getmembers()


def test_entries_are_private_files_of_root_and_links() -> None:
    file, link = members(
        tar.entry("machine.json", b"{}", modified=7) + tar.entry("image", Link("/store/disk")) + tar.END
    )
    assert (file.name, file.size, file.mode, file.uid, file.gid, file.mtime) == ("machine.json", 2, 0o600, 0, 0, 7)
    assert (link.name, link.linkname, link.issym()) == ("image", "/store/disk", True)


def test_streams_can_be_joined() -> None:
    archive = (
        tar.folder("resume/") + b"".join(tar.large_entry("resume/state", [b"a" * 700, b"b" * 700], 1400)) + tar.END
    )
    folder, state = members(archive)
    assert (folder.isdir(), folder.mode, state.name, state.size) == (True, 0o755, "resume/state", 1400)


def test_names_may_be_long() -> None:
    (found,) = members(tar.entry("x" * 200, b"") + tar.END)
    assert found.name == "x" * 200


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_a_file_is_read_back(size: int, tmp_path: Path) -> None:
    content = b"x" * size
    archive = tar.entry("a", content) + tar.END
    pieces = [archive[at : at + 100] for at in range(0, len(archive), 100)]
    assert tar.read_file(pieces) == content
    tar.extract_file(pieces, "a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content


def test_a_stream_is_read_no_further_than_needed() -> None:
    left = [b"fg", b"cde", b"ab"]
    pieces = tar.Pieces(left.pop() for _ in range(3))
    assert pieces.read(1) == b"a"
    assert left == [b"fg", b"cde"]
    assert pieces.read(3) == b"bcd"
    assert [pieces.read(10), pieces.read(10)] == [b"efg", b""]
