"""Downloads from a server that closes connections, sends wrong answers, changes the file, redirects, and is slow."""

import gzip
import hashlib
import lzma
import os
import re
import resource
import time
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from pytest_virtainers.errors import ImageError, SpecError, StoreError
from pytest_virtainers.guests import download
from pytest_virtainers.guests.decompress import decompress
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
    """Download; return the progress messages."""
    messages: list[str] = []
    content = download.fetch(server.url, digest, folder / "disk", messages.append, wait=0.001)
    assert content == hashlib.sha256((folder / "disk").read_bytes()).hexdigest()
    return messages


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("suffix", ["part", "unpacked"])
def test_links_in_place_of_temporary_files_are_not_followed(
    server: HostileServer, tmp_path: Path, suffix: str
) -> None:
    server.content = gzip.compress(CONTENT)
    (tmp_path / "precious").write_text("unchanged")
    (tmp_path / f"disk.{suffix}").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match=f"cannot write to {tmp_path}: Too many levels of symbolic links"):
        get(server, tmp_path, Digest.of(hashlib.sha256(server.content).hexdigest()))
    assert (tmp_path / "precious").read_text() == "unchanged"


def test_download_of_a_whole_file(server: HostileServer, tmp_path: Path) -> None:
    assert get(server, tmp_path)[-2:] == [f"{prefix}[{'#' * 24}] 100 % of 1 MiB" for prefix in ("", "checking ")]
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert names(tmp_path) == ["disk"]
    assert server.ranges == [None]


def test_interrupted_downloads_are_resumed(server: HostileServer, tmp_path: Path) -> None:
    server.days = [cut(4 * PIECE + 10), status(503), cut(0), cut(8 * PIECE)]
    messages = get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert server.ranges == [None, *["bytes=262144-"] * 3, "bytes=786432-"]
    assert any(line.startswith("interrupted at 0 MiB; retrying in ") for line in messages)


def test_a_failed_download_is_resumed_by_the_next_run(server: HostileServer, tmp_path: Path) -> None:
    server.days = [cut(4 * PIECE + 10), *[cut(0)] * 5]
    words = (
        f"fetching {server.url} failed after 262144 bytes and 5 attempts without progress: the connection was "
        "closed after 262144 of 1048576 bytes. The next run resumes the download"
    )
    with pytest.raises(ImageError, match=f"^{re.escape(words)}$"):
        get(server, tmp_path)
    assert names(tmp_path) == ["disk.part"]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=262144-"
    assert names(tmp_path) == ["disk"]


def test_an_unreachable_server_is_reported(server: HostileServer, tmp_path: Path) -> None:
    server.server_close()
    with pytest.raises(ImageError, match="failed after 0 bytes and 5 attempts without progress: Connection refused"):
        get(server, tmp_path)


def test_a_server_without_ranges_sends_the_file_again(server: HostileServer, tmp_path: Path) -> None:
    server.days = [cut(4 * PIECE + 10), no_ranges]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_a_version_that_changes_during_the_download_replaces_the_old_one(
    server: HostileServer, tmp_path: Path
) -> None:
    new = CONTENT[::-1]

    def change(request: hostile_server.Request) -> None:
        server.content, server.version = new, '"two"'
        request.send()

    server.days = [cut(4 * PIECE + 10), change]
    get(server, tmp_path, Digest.of(hashlib.sha512(new).hexdigest()))
    assert (tmp_path / "disk").read_bytes() == new


def test_mirrors_with_different_validators_are_resumed(server: HostileServer, tmp_path: Path) -> None:
    def mirror(number: int) -> Day:
        def answer(request: hostile_server.Request) -> None:
            server.version = f'"mirror {number}"'
            cut(PIECE)(request)

        return answer

    server.days = [mirror(number) for number in range(8)]
    messages = get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert sum("retrying" in line for line in messages) == 8
    assert not any("downloading it again" in line for line in messages)


def test_a_part_of_another_version_is_downloaded_again(server: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "disk.part").write_bytes(b"old" * 1000)
    assert "the resumed file does not match its digest; downloading it again" in get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_a_wrong_digest_after_an_interruption_is_tried_once_more(server: HostileServer, tmp_path: Path) -> None:
    def change(request: hostile_server.Request) -> None:
        server.content = CONTENT
        request.send()

    server.content = CONTENT[::-1]
    server.days = [cut(4 * PIECE), change]
    assert "the resumed file does not match its digest; downloading it again" in get(server, tmp_path)
    assert server.ranges == [None, "bytes=262144-", None]
    server.content, server.days, server.ranges = CONTENT[::-1], [cut(4 * PIECE)], []
    with pytest.raises(ImageError, match=r"expected .* It was deleted$"):
        get(server, tmp_path)
    assert server.ranges == [None, "bytes=262144-", None]


def test_a_complete_part_is_not_downloaded_again(server: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "disk.part").write_bytes(CONTENT)
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    (tmp_path / "disk.part").write_bytes(CONTENT + b"and more")
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_a_wrong_digest_deletes_the_file(server: HostileServer, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"!"
    wrong = hashlib.sha256(server.content).hexdigest()
    words = f"the downloaded file (1048576 bytes) has sha256 {wrong}, expected {RIGHT.value}: it was changed"
    with pytest.raises(ImageError, match=re.escape(words)) as error:
        get(server, tmp_path)
    assert str(error.value).endswith("It was deleted")
    assert names(tmp_path) == []


def test_a_file_shorter_than_its_announced_length_is_requested_again(server: HostileServer, tmp_path: Path) -> None:
    server.days = [longer]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT, "the second response said that there is no more"
    server.days = [longer_without_ranges] * 10
    with pytest.raises(
        ImageError, match="5 attempts without progress: the connection was closed after 1048576 of 1049576 bytes"
    ):
        get(server, tmp_path)


def test_an_announced_length_that_is_too_small_fails_the_digest(server: HostileServer, tmp_path: Path) -> None:
    server.days = [lambda request: request.send(more=-1000)]
    with pytest.raises(ImageError, match=r"the downloaded file \(1047576 bytes\) has sha256 "):
        get(server, tmp_path)


@pytest.mark.parametrize(("code", "reason"), [(404, "Not Found"), (403, "Forbidden")])
def test_a_missing_file_fails_without_retries(server: HostileServer, tmp_path: Path, code: int, reason: str) -> None:
    server.days = [status(code)]
    with pytest.raises(ImageError, match=rf"^fetching {server.url} failed: the server answered {code} {reason}$"):
        get(server, tmp_path)
    assert len(server.ranges) == 1
    assert names(tmp_path) == []


def test_redirects_are_followed(server: HostileServer, tmp_path: Path) -> None:
    server.days = [status(302, Location="/elsewhere")]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    server.days = [status(302, Location="/round")] * 40
    with pytest.raises(ImageError, match=r"failed: Exceeded 30 redirects\."):
        get(server, tmp_path)


def test_a_download_that_stalls_is_resumed(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_READ_SECONDS", 0.2)
    server.days = [silent]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=65536-"]


def test_without_a_digest_every_redirect_must_use_tls(
    secure: HostileServer, server: HostileServer, tmp_path: Path
) -> None:
    get(secure, tmp_path, None)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    secure.days = [status(302, Location=server.url)]
    with pytest.raises(ImageError, match=f"it redirects to {server.url} over http, which does not protect the"):
        get(secure, tmp_path, None)
    secure.days = [status(302, Location=server.url)]
    get(secure, tmp_path)


def test_without_a_digest_an_interrupted_download_is_deleted(secure: HostileServer, tmp_path: Path) -> None:
    secure.days = [cut(4 * PIECE), *[cut(0)] * 5]
    with pytest.raises(ImageError, match=r"of 1048576 bytes\. If this host cannot reach the server, download the"):
        get(secure, tmp_path, None)
    assert names(tmp_path) == []


def test_without_a_digest_versions_are_not_mixed(secure: HostileServer, tmp_path: Path) -> None:
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


def test_an_unknown_certificate_is_reported(
    secure: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(ImageError, match=r"certificate verify failed.* set REQUESTS_CA_BUNDLE to the file with"):
        get(secure, tmp_path, None)


def test_without_a_digest_a_download_without_validator_starts_again(secure: HostileServer, tmp_path: Path) -> None:
    secure.days = [cut(4 * PIECE + 10)]
    get(secure, tmp_path, None)
    assert secure.ranges == [None, "bytes=262144-"]
    secure.days, secure.ranges, secure.version = [cut(4 * PIECE + 10)], [], ""
    (tmp_path / "disk.part").write_bytes(b"old")
    get(secure, tmp_path, None)
    assert secure.ranges == [None, None]
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_decompressing_zeros_does_not_fill_the_memory(tmp_path: Path) -> None:
    (tmp_path / "zeros.zst").write_bytes(zstandard.compress(bytes(256 * 2**20)))
    tracemalloc.start()
    try:
        decompress(tmp_path / "zeros.zst", tmp_path / "disk", str)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "disk").stat().st_size == 256 * 2**20
    assert peak < 100 * 2**20


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_compressed_downloads_are_decompressed(server: HostileServer, tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    server.content = pack(CONTENT[:400_000]) + pack(CONTENT[400_000:])
    size = len(server.content)
    server.days = [cut(size // 3), cut(size // 3)]
    get(server, tmp_path, Digest.of(hashlib.sha256(server.content).hexdigest()))
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert len(server.ranges) == 3

    server.content = pack(CONTENT)[:-10]
    with pytest.raises(ImageError, match=r"is damaged: its (gzip|xz|zstd) data is truncated\. It was deleted"):
        get(server, tmp_path, Digest.of(hashlib.sha256(server.content).hexdigest()))
    broken = bytearray(pack(os.urandom(100_000)))
    broken[6:14] = b"\xff" * 8
    server.content = bytes(broken)
    with pytest.raises(ImageError, match=r"is damaged: its (gzip|xz|zstd) data is (invalid|truncated)"):
        get(server, tmp_path, Digest.of(hashlib.sha256(server.content).hexdigest()))


def test_an_unwritable_folder_is_reported(server: HostileServer, tmp_path: Path) -> None:
    with pytest.raises(
        StoreError,
        match=rf"^fetching {server.url} failed: cannot write to \S+/missing: No such file or directory\. Free space",
    ):
        get(server, tmp_path / "missing")


def test_a_full_disk_is_reported_and_the_part_stays(server: HostileServer, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(
            StoreError, match=rf"cannot write to {tmp_path}: File too large\. Free space there, or set XDG"
        ):
            get(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["disk.part"]
    get(server, tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://a/b", r"the URL must start with http:// or https://"),
        ("https:///b", r"the URL must start with http:// or https://"),
        ("http://a/b", r"http does not protect the download\. Add the digest: http://a/b#sha256=…"),
        ("https://a/b#md5=1", r"expected sha256= and 64 hex digits, or sha512= and 128, after the #"),
        (f"https://a/b#sha512={'a' * 64}", r"expected sha256= and 64"),
    ],
)
def test_unusable_urls_are_refused(url: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        download.split(url)


def test_split_returns_url_and_digest() -> None:
    assert download.split("https://a/b?c#sha256=" + "0" * 64) == ("https://a/b?c", Digest("sha256", "0" * 64))
    assert download.split("https://a/b#sha256=" + "A" * 64)[1] == Digest("sha256", "a" * 64)
    assert download.split("https://a/b") == ("https://a/b", None)
    with pytest.raises(ValueError, match="is neither a SHA-256"):
        Digest.of("abc")


def test_a_downloads_folder_writable_by_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    download.folder().chmod(0o777)
    with pytest.raises(
        SpecError, match=r"downloads: its mode 0777 lets others write to it \(chmod 700\): another user"
    ):
        download.folder()


def test_old_downloads_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, days in (("old.part", 15), ("old.disk", 15), ("new.part", 1)):
        path = download.folder() / name
        path.touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
    assert [each.name for each in download.folder().iterdir()] == ["new.part"]
