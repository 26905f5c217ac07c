from pathlib import Path

import pytest

from pytest_virtainers.errors import ImageError
from pytest_virtainers.guests import checksums
from pytest_virtainers.guests.download import Digest
from tests.unit.guests.checksums import LONG, NAME, OTHER, SHORT
from tests.unit.hostile_server import HostileServer, cut, status


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        (f"{OTHER}  other.qcow2\n{SHORT}  {NAME}\n", "sha256"),
        (f"{SHORT} *{NAME}\n", "sha256"),
        (f"{SHORT} {NAME}\n", "sha256"),
        (f"{SHORT}  ./{NAME}\r\n", "sha256"),
        (f"{LONG}  {NAME}\n", "sha512"),
        (f"# {NAME}: 307494912 bytes\nSHA256 ({NAME}) = {SHORT}\nSHA256 (other) = {OTHER}\n", "sha256"),
        (f"SHA512 ({NAME}) = {LONG}", "sha512"),
        (
            f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# x\nSHA256 ({NAME}) = {SHORT}\n"
            "-----BEGIN PGP SIGNATURE-----\n\niQIz\n-----END PGP SIGNATURE-----\n",
            "sha256",
        ),
        (f"{LONG.upper()}\n", "sha512"),
    ],
)
def test_find_reads_all_common_formats(text: str, algorithm: str) -> None:
    value = SHORT if algorithm == "sha256" else LONG
    assert checksums.find(text, NAME, "here") == Digest(algorithm, value)


@pytest.mark.parametrize(
    "text",
    ["", "<html>not found</html>", f"{SHORT}  x-{NAME}\n", f"MD5 ({NAME}) = {'0' * 32}\n", f"{SHORT}  {NAME}.xz\n"],
)
def test_a_missing_digest_is_reported(text: str) -> None:
    with pytest.raises(
        ImageError, match=rf"^here has no SHA-256 or SHA-512 of {NAME}, so the image cannot be verified"
    ):
        checksums.find(text, NAME, "here")


def test_different_digests_of_a_file_are_reported() -> None:
    with pytest.raises(ImageError, match=f"here has several different digests of {NAME}"):
        checksums.find(f"{SHORT}  {NAME}\n{OTHER}  {NAME}\n", NAME, "here")


def test_published_digests_are_downloaded(secure: HostileServer, server: HostileServer, tmp_path: Path) -> None:
    secure.content = f"{SHORT}  {NAME}\n".encode()
    secure.days = [cut(10)]
    messages: list[str] = []
    source = checksums.Source(secure.url)
    assert checksums.published(source, NAME, tmp_path / "sums", messages.append) == Digest("sha256", SHORT)
    assert list(tmp_path.iterdir()) == []
    secure.days = [status(404)]
    with pytest.raises(ImageError, match=f"fetching {secure.url} failed: the server answered 404 Not Found"):
        checksums.published(source, NAME, tmp_path / "sums", messages.append)
    secure.days = [status(302, Location=server.url)]
    with pytest.raises(ImageError, match=f"it redirects to {server.url} over http"):
        checksums.published(source, NAME, tmp_path / "sums", messages.append)
