"""Signatures, with keys that GnuPG generates for the tests."""

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
    """A GnuPG home with a key pair and a keyring with the public key."""

    home: Path

    def gpg(self, *words: str, stdin: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
        return subprocess.run([*command, *words], input=stdin, capture_output=True, check=True).stdout

    @property
    def keyring(self) -> Path:
        return self.home / "public.gpg"

    def detached(self, text: bytes) -> bytes:
        return self.gpg("--detach-sign", stdin=text)

    def cleartext(self, text: bytes) -> bytes:
        return self.gpg("--clear-sign", stdin=text)


@pytest.fixture(scope="module")
def signers() -> Iterator[tuple[Signer, Signer]]:
    """Two signers, in folders with names short enough for GnuPG's sockets."""
    with tempfile.TemporaryDirectory(prefix="gpg") as one, tempfile.TemporaryDirectory(prefix="gpg") as other:
        found = Signer(Path(one)), Signer(Path(other))
        for each in found:
            each.gpg("--quick-gen-key", "images@example.org", "ed25519", "sign")
            each.keyring.write_bytes(each.gpg("--export"))
        yield found
        for each in found:
            subprocess.run(["gpgconf", "--homedir", str(each.home), "--kill", "all"], check=True)


def test_signed_text_is_returned(signers: tuple[Signer, Signer], tmp_path: Path) -> None:
    distributor, _ = signers
    file, signature = tmp_path / "sums", tmp_path / "sums.gpg"
    file.write_bytes(TEXT)
    signature.write_bytes(distributor.detached(TEXT))
    assert signatures.signed(file, "there", distributor.keyring, signature) == TEXT
    file.write_bytes(distributor.cleartext(TEXT))
    assert signatures.signed(file, "there", distributor.keyring, None) == TEXT


def test_text_without_a_valid_signature_is_refused(signers: tuple[Signer, Signer], tmp_path: Path) -> None:
    distributor, stranger = signers
    file, signature = tmp_path / "sums", tmp_path / "sums.gpg"

    def refused(text: bytes, detached: bytes | None) -> str:
        file.write_bytes(text)
        signature.write_bytes(detached or b"")
        with pytest.raises(ImageError) as error:
            signatures.signed(file, "there", distributor.keyring, None if detached is None else signature)
        return str(error.value)

    wrong = f"there is not signed by a key in {distributor.keyring}. Output of gpgv: "
    changed = TEXT.replace(SHORT.encode(), OTHER.encode())
    for text, detached in (
        (TEXT, stranger.detached(TEXT)),
        (changed, distributor.detached(TEXT)),
        (TEXT, b""),
        (TEXT, b"<html>not found</html>"),
        (TEXT, None),
        (stranger.cleartext(TEXT), None),
        (distributor.cleartext(TEXT).replace(SHORT.encode(), OTHER.encode()), None),
    ):
        assert refused(text, detached).startswith(wrong)
    assert "BAD signature" in refused(changed, distributor.detached(TEXT))
    assert "No public key" in refused(TEXT, stranger.detached(TEXT))


def test_text_outside_the_signature_is_ignored(signers: tuple[Signer, Signer], tmp_path: Path) -> None:
    distributor, _ = signers
    file = tmp_path / "sums"
    file.write_bytes(f"{OTHER}  {NAME}\n\n".encode() + distributor.cleartext(TEXT) + f"{OTHER}  {NAME}\n".encode())
    assert signatures.signed(file, "there", distributor.keyring, None) == TEXT


def test_unusable_keyrings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"cannot read the keyring {tmp_path}/no.asc: No such file or directory"):
        signatures.signed(tmp_path / "sums", "there", tmp_path / "no.asc", None)
    (tmp_path / "key.asc").write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    with pytest.raises(ImageError, match=r"is armored, which .*: gpg --dearmor <.*key.asc >key.gpg$"):
        signatures.signed(tmp_path / "sums", "there", tmp_path / "key.asc", None)


def test_missing_gpgv_is_reported(
    signers: tuple[Signer, Signer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="cannot check the signature of there: gpgv is not installed"):
        signatures.signed(tmp_path / "sums", "there", signers[0].keyring, None)


def test_digests_and_signature_are_downloaded(
    signers: tuple[Signer, Signer], secure: HostileServer, tmp_path: Path
) -> None:
    distributor, stranger = signers

    def serve(content: bytes) -> None:
        def give(request: Request) -> None:
            secure.content = content
            request.send()

        secure.days.append(give)

    source = checksums.Source(secure.url, distributor.keyring, f"{secure.url}.gpg")
    serve(TEXT)
    serve(distributor.detached(TEXT))
    assert checksums.published(source, NAME, tmp_path / "sums", str) == Digest("sha256", SHORT)
    serve(TEXT)
    serve(stranger.detached(TEXT))
    with pytest.raises(ImageError, match=f"{secure.url} is not signed by a key in"):
        checksums.published(source, NAME, tmp_path / "sums", str)
    serve(distributor.cleartext(TEXT))
    source = checksums.Source(secure.url, distributor.keyring)
    assert checksums.published(source, NAME, tmp_path / "sums", str) == Digest("sha256", SHORT)
    assert list(tmp_path.iterdir()) == []
