"""With keys that GnuPG makes here, and signatures that it writes."""

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_virtainers.errors import ImageError
from pytest_virtainers.guests import checksums, signatures
from pytest_virtainers.guests.download import Digest
from tests.unit.guests.checksums import NAME, OTHER, SHORT
from tests.unit.hostile_server import HostileServer, Request

TEXT = f"{SHORT}  {NAME}\n".encode()


@dataclass
class Signer:
    """Somebody with a key, and the keyring with its public half."""

    home: Path

    def gpg(self, *words: str, stdin: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
        return subprocess.run([*command, *words], input=stdin, capture_output=True, check=True).stdout

    @property
    def keyring(self) -> Path:
        return self.home / "public.gpg"

    def beside(self, text: bytes) -> bytes:
        return self.gpg("--detach-sign", stdin=text)

    def around(self, text: bytes) -> bytes:
        return self.gpg("--clear-sign", stdin=text)


@pytest.fixture(scope="module")
def signers() -> Iterator[tuple[Signer, Signer]]:
    """Two of them, in folders whose names are short enough for the sockets that GnuPG has there."""
    with tempfile.TemporaryDirectory(prefix="gpg") as one, tempfile.TemporaryDirectory(prefix="gpg") as other:
        found = Signer(Path(one)), Signer(Path(other))
        for each in found:
            each.gpg("--quick-gen-key", "images@example.org", "ed25519", "sign")
            each.keyring.write_bytes(each.gpg("--export"))
        yield found
        for each in found:
            subprocess.run(["gpgconf", "--homedir", str(each.home), "--kill", "all"], check=True)


def test_what_is_signed_is_given(signers: tuple[Signer, Signer], tmp_path: Path) -> None:
    distributor, _ = signers
    file, signature = tmp_path / "sums", tmp_path / "sums.gpg"
    file.write_bytes(TEXT)
    signature.write_bytes(distributor.beside(TEXT))
    assert signatures.signed(file, "there", distributor.keyring, signature) == TEXT
    file.write_bytes(distributor.around(TEXT))
    assert signatures.signed(file, "there", distributor.keyring, None) == TEXT


def test_what_is_not_signed_is_not_given(signers: tuple[Signer, Signer], tmp_path: Path) -> None:
    distributor, stranger = signers
    file, signature = tmp_path / "sums", tmp_path / "sums.gpg"

    def refused(text: bytes, beside: bytes | None) -> str:
        file.write_bytes(text)
        signature.write_bytes(beside or b"")
        with pytest.raises(ImageError) as error:
            signatures.signed(file, "there", distributor.keyring, None if beside is None else signature)
        return str(error.value)

    wrong = f"there is not signed by a key in {distributor.keyring}, so it is not believed. gpgv says: "
    changed = TEXT.replace(SHORT.encode(), OTHER.encode())
    for text, beside in (
        (TEXT, stranger.beside(TEXT)),
        (changed, distributor.beside(TEXT)),
        (TEXT, b""),
        (TEXT, b"<html>not found</html>"),
        (TEXT, None),
        (stranger.around(TEXT), None),
        (distributor.around(TEXT).replace(SHORT.encode(), OTHER.encode()), None),
    ):
        assert refused(text, beside).startswith(wrong)
    assert "BAD signature" in refused(changed, distributor.beside(TEXT))
    assert "No public key" in refused(TEXT, stranger.beside(TEXT))


def test_what_stands_before_a_signed_part_is_not_believed(signers: tuple[Signer, Signer], tmp_path: Path) -> None:
    distributor, _ = signers
    file = tmp_path / "sums"
    file.write_bytes(f"{OTHER}  {NAME}\n\n".encode() + distributor.around(TEXT) + f"{OTHER}  {NAME}\n".encode())
    assert signatures.signed(file, "there", distributor.keyring, None) == TEXT


def test_keyrings_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"the keyring {tmp_path}/no.asc cannot be read: No such file or directory"):
        signatures.signed(tmp_path / "sums", "there", tmp_path / "no.asc", None)
    (tmp_path / "key.asc").write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    with pytest.raises(ImageError, match=r"is armored, which .*: gpg --dearmor <.*key.asc >key.gpg$"):
        signatures.signed(tmp_path / "sums", "there", tmp_path / "key.asc", None)


def test_without_gpgv(signers: tuple[Signer, Signer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="the signature of there cannot be checked: gpgv is not installed"):
        signatures.signed(tmp_path / "sums", "there", signers[0].keyring, None)


def test_a_server_is_asked_for_both(signers: tuple[Signer, Signer], secure: HostileServer, tmp_path: Path) -> None:
    distributor, stranger = signers

    def gives(content: bytes) -> None:
        def give(request: Request) -> None:
            secure.content = content
            request.send()

        secure.days.append(give)

    source = checksums.Source(secure.url, distributor.keyring, f"{secure.url}.gpg")
    gives(TEXT)
    gives(distributor.beside(TEXT))
    assert checksums.published(source, NAME, tmp_path / "sums", str) == Digest("sha256", SHORT)
    gives(TEXT)
    gives(stranger.beside(TEXT))
    with pytest.raises(ImageError, match=f"{secure.url} is not signed by a key in"):
        checksums.published(source, NAME, tmp_path / "sums", str)
    gives(distributor.around(TEXT))
    source = checksums.Source(secure.url, distributor.keyring)
    assert checksums.published(source, NAME, tmp_path / "sums", str) == Digest("sha256", SHORT)
    assert list(tmp_path.iterdir()) == []
