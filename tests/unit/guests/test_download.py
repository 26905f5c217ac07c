"""Downloads from a server that cuts connections, lies, changes its mind, leads elsewhere and is slow."""

import gzip
import hashlib
import lzma
import os
import re
import resource
from pathlib import Path

import pytest
import zstandard

from pytest_virtainers.errors import ImageError, StoreError
from pytest_virtainers.guests import download
from pytest_virtainers.guests.decompress import Unpacker
from pytest_virtainers.guests.download import Digest
from tests.unit import hostile_server
from tests.unit.hostile_server import (
    CONTENT,
    PIECE,
    Day,
    HostileServer,
    cut,
    longer,
    longer_without_ranges,
    no_ranges,
    silent,
    status,
)

RIGHT = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())


def get(server: HostileServer, folder: Path, digest: Digest | None = RIGHT) -> list[str]:
    """Fetch; return the progress messages."""
    messages: list[str] = []
    content = download.fetch(server.url, digest, folder / "disk", messages.append, wait=0.001)
    assert content == hashlib.sha256((folder / "disk").read_bytes()).hexdigest()
    return messages


def left(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("suffix", ["part", "unpacked"])
def test_a_link_in_place_of_what_is_downloaded_is_not_followed(
    server: HostileServer, tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "precious").write_text("as it was")
    (tmp_path / f"disk.{suffix}").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="cannot be written: Too many levels of symbolic links"):
        get(server, tmp_path)
    assert (tmp_path / "precious").read_text() == "as it was"


def test_a_good_day(server: HostileServer, tmp_path: Path) -> None:
    assert get(server, tmp_path)[-1] == f"[{'#' * 24}] 100 % of 1 MiB"
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert left(tmp_path) == ["disk"]
    assert server.ranges == [None]


def test_cut_connections_are_gone_on_with(server: HostileServer, tmp_path: Path) -> None:
    server.days = [cut(4 * PIECE + 10), status(503), cut(0), cut(8 * PIECE)]
    messages = get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert server.ranges == [None, *["bytes=262144-"] * 3, "bytes=786432-"]
    assert any(line.startswith("broken off at 0 MiB; trying again in ") for line in messages)


def test_a_server_that_gives_no_more_is_left_for_the_next_run(server: HostileServer, tmp_path: Path) -> None:
    server.days = [cut(4 * PIECE + 10), *[cut(0)] * 5]
    words = (
        f"fetching {server.url} failed after 262144 bytes, as 5 tries in a row brought nothing: the connection was "
        "cut after 262144 of 1048576 bytes. What came is kept, and the next run goes on from there"
    )
    with pytest.raises(ImageError, match=f"^{re.escape(words)}$"):
        get(server, tmp_path)
    assert left(tmp_path) == ["disk.part"]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=262144-"
    assert left(tmp_path) == ["disk"]


def test_a_server_that_cannot_be_reached(server: HostileServer, tmp_path: Path) -> None:
    server.server_close()
    with pytest.raises(
        ImageError, match=r"failed after 0 bytes, as 5 tries in a row brought nothing: Connection refused"
    ):
        get(server, tmp_path)


def test_a_server_without_ranges_begins_anew(server: HostileServer, tmp_path: Path) -> None:
    server.days = [cut(4 * PIECE + 10), no_ranges]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_another_version_is_not_put_behind_the_old_one(server: HostileServer, tmp_path: Path) -> None:
    new = CONTENT[::-1]

    def change(request: hostile_server.Request) -> None:
        server.content, server.version = new, '"two"'
        request.send()

    server.days = [cut(4 * PIECE + 10), change]
    get(server, tmp_path, Digest.of(hashlib.sha512(new).hexdigest()))
    assert (tmp_path / "disk").read_bytes() == new


def test_mirrors_that_name_one_file_differently_are_gone_on_with(server: HostileServer, tmp_path: Path) -> None:
    def mirror(number: int) -> Day:
        def answer(request: hostile_server.Request) -> None:
            server.version = f'"mirror {number}"'
            cut(PIECE)(request)

        return answer

    server.days = [mirror(number) for number in range(8)]
    messages = get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert sum("trying again" in line for line in messages) == 8
    assert not any("once more" in line for line in messages)


def test_what_an_earlier_run_has_left_of_another_version_is_thrown_away(
    server: HostileServer, tmp_path: Path
) -> None:
    (tmp_path / "disk.part").write_bytes(b"old" * 1000)
    assert "what an earlier try has left does not fit: once more from the beginning" in get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_what_was_here_whole_already_is_not_fetched_again(server: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "disk.part").write_bytes(CONTENT)
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    (tmp_path / "disk.part").write_bytes(CONTENT + b"and more")
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_wrong_bytes_are_thrown_away(server: HostileServer, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"!"
    wrong = hashlib.sha256(server.content).hexdigest()
    words = f"what came (1048576 bytes) has sha256 {wrong}, and should have {RIGHT.value}: somebody has changed it"
    with pytest.raises(ImageError, match=re.escape(words)) as error:
        get(server, tmp_path)
    assert str(error.value).endswith("It was thrown away")
    assert left(tmp_path) == []


def test_a_length_that_is_too_great_is_no_end(server: HostileServer, tmp_path: Path) -> None:
    server.days = [longer]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT, "the next answer was that there is no more"
    server.days = [longer_without_ranges] * 10
    with pytest.raises(
        ImageError, match="5 tries in a row brought nothing: the connection was cut after 1048576 of 1049576 bytes"
    ):
        get(server, tmp_path)


def test_a_length_that_is_too_small_fails_the_digest(server: HostileServer, tmp_path: Path) -> None:
    server.days = [lambda request: request.send(more=-1000)]
    with pytest.raises(ImageError, match=r"what came \(1047576 bytes\) has sha256 "):
        get(server, tmp_path)


@pytest.mark.parametrize(("code", "reason"), [(404, "Not Found"), (403, "Forbidden")])
def test_what_is_not_there_fails_at_once(server: HostileServer, tmp_path: Path, code: int, reason: str) -> None:
    server.days = [status(code)]
    with pytest.raises(ImageError, match=rf"^fetching {server.url} failed: the server answered {code} {reason}$"):
        get(server, tmp_path)
    assert len(server.ranges) == 1
    assert left(tmp_path) == []


def test_it_goes_where_the_server_leads(server: HostileServer, tmp_path: Path) -> None:
    server.days = [status(302, Location="/elsewhere")]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    server.days = [status(302, Location="/round")] * 40
    with pytest.raises(ImageError, match="the server leads from one place to the next forever"):
        get(server, tmp_path)


def test_a_server_that_falls_silent(server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SILENCE_SECONDS", 0.2)
    server.days = [silent]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=65536-"]


def test_without_a_digest_tls_is_needed_all_the_way(
    secure: HostileServer, server: HostileServer, tmp_path: Path
) -> None:
    get(secure, tmp_path, None)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    secure.days = [status(302, Location=server.url)]
    with pytest.raises(
        ImageError, match=f"it leads to {server.url} by way of http, where anybody may have changed it"
    ):
        get(secure, tmp_path, None)
    secure.days = [status(302, Location=server.url)]
    get(secure, tmp_path)


def test_without_a_digest_nothing_is_kept_of_a_broken_download(secure: HostileServer, tmp_path: Path) -> None:
    secure.days = [cut(4 * PIECE), *[cut(0)] * 5]
    with pytest.raises(
        ImageError, match=r"of 1048576 bytes\. If it cannot be reached from here, fetch the image elsewhere and"
    ):
        get(secure, tmp_path, None)
    assert left(tmp_path) == []


def test_a_part_of_another_version_is_not_taken(secure: HostileServer, tmp_path: Path) -> None:
    new = CONTENT[::-1]

    def change(request: hostile_server.Request) -> None:
        secure.content = new
        request.send()
        secure.version = '"one"'

    def other(request: hostile_server.Request) -> None:
        del request.headers["If-Range"]
        secure.version = '"two"'
        change(request)

    secure.days = [cut(4 * PIECE), other]
    get(secure, tmp_path, None)
    assert (tmp_path / "disk").read_bytes() == new


def test_a_certificate_that_nobody_knows(
    secure: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(
        ImageError, match=r"certificate verify failed.*name the file with that one's in REQUESTS_CA_BUNDLE"
    ):
        get(secure, tmp_path, None)


def test_without_a_digest_only_a_named_version_is_gone_on_with(secure: HostileServer, tmp_path: Path) -> None:
    secure.days = [cut(4 * PIECE + 10)]
    get(secure, tmp_path, None)
    assert secure.ranges == [None, "bytes=262144-"]
    secure.days, secure.ranges, secure.version = [cut(4 * PIECE + 10)], [], ""
    (tmp_path / "disk.part").write_bytes(b"old")
    get(secure, tmp_path, None)
    assert secure.ranges == [None, None]
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_empty_room_does_not_fill_the_memory() -> None:
    sizes: list[int] = []
    unpacker = Unpacker(lambda data: sizes.append(len(data)))
    unpacker.write(zstandard.compress(bytes(64 * 2**20)))
    unpacker.end()
    assert sum(sizes) == 64 * 2**20
    assert max(sizes) < 40 * 2**20


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_it_is_unpacked_on_the_way(server: HostileServer, tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    server.content = pack(CONTENT[:400_000]) + pack(CONTENT[400_000:])
    size = len(server.content)
    server.days = [cut(size // 3), cut(size // 3)]
    get(server, tmp_path, Digest.of(hashlib.sha256(server.content).hexdigest()))
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert len(server.ranges) == 3

    server.content = pack(CONTENT)[:-10]
    with pytest.raises(ImageError, match=r"is damaged: its (gzip|xz|zstd) data is cut short\. It was thrown away"):
        get(server, tmp_path, Digest.of(hashlib.sha256(server.content).hexdigest()))
    broken = bytearray(pack(os.urandom(100_000)))
    broken[6:14] = b"\xff" * 8
    server.content = bytes(broken)
    with pytest.raises(ImageError, match=r"is damaged: its (gzip|xz|zstd) data is "):
        get(server, tmp_path, Digest.of(hashlib.sha256(server.content).hexdigest()))


def test_a_folder_that_cannot_be_written(server: HostileServer, tmp_path: Path) -> None:
    with pytest.raises(
        StoreError,
        match=rf"^fetching {server.url} failed: \S+/missing cannot be written: No such file or directory\. Make room",
    ):
        get(server, tmp_path / "missing")


def test_a_full_disk(server: HostileServer, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(
            StoreError, match=rf"{tmp_path} cannot be written: File too large\. Make room there, or set XDG"
        ):
            get(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left(tmp_path) == ["disk.part"]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://a/b", r"only http:// and https:// can be fetched"),
        ("https:///b", r"only http:// and https:// can be fetched"),
        ("http://a/b", r"over http anybody may have changed it\. Say what it is: http://a/b#sha256=…"),
        ("https://a/b#md5=1", r"after the # should be sha256= and 64 hex digits, or sha512= and 128"),
        (f"https://a/b#sha512={'a' * 64}", r"after the # should be"),
    ],
)
def test_urls_that_will_not_do(url: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        download.split(url)


def test_a_digest_is_behind_the_url() -> None:
    assert download.split("https://a/b?c#sha256=" + "0" * 64) == ("https://a/b?c", Digest("sha256", "0" * 64))
    assert download.split("https://a/b#sha256=" + "A" * 64)[1] == Digest("sha256", "a" * 64)
    assert download.split("https://a/b") == ("https://a/b", None)
    with pytest.raises(ValueError, match="is no SHA-256"):
        Digest.of("abc")
