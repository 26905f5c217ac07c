"""Digests that distributors publish beside their images, in all the ways in which they do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.errors import ImageError
from pytest_virtainers.guests import download, signatures
from pytest_virtainers.guests.download import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_HEX = r"([0-9a-fA-F]{64}(?:[0-9a-fA-F]{64})?)"
_COREUTILS = re.compile(rf"{_HEX} [ *]?(?:\./)?(\S+)")
_BSD = re.compile(rf"SHA(?:256|512) ?\((?:\./)?([^)]+)\) ?= ?{_HEX}")
_BARE = re.compile(rf"\s*{_HEX}\s*")


@dataclass(frozen=True)
class Source:
    """A file with digests on a server.

    Attributes:
        url: where it is.
        keyring: a file with the public keys, one of which has to have signed it; None: TLS is believed.
        signature: URL of the signature; empty: it is in the file of digests.
    """

    url: str
    keyring: Path | None = None
    signature: str = ""


def published(source: Source, name: str, file: Path, tell: Callable[[str], object]) -> Digest:
    """Fetch the digests that a server has, and give that of the file called `name`.

    `file` is where they are for the moment; otherwise it is as with `fetch.fetch`.

    Raises:
        ImageError: it does not answer, or has no such digest; or the digests are not signed as they should be.
        StoreError: it cannot be written.
    """
    beside = file.with_name(f"{file.name}.signature") if source.signature else None
    try:
        download.fetch(source.url, None, file, tell)
        if beside is not None:
            download.fetch(source.signature, None, beside, tell)
        text = signatures.signed(file, source.url, source.keyring, beside) if source.keyring else file.read_bytes()
        return find(text.decode(errors="replace"), name, source.url)
    finally:
        file.unlink(missing_ok=True)
        if beside is not None:
            beside.unlink(missing_ok=True)


def find(text: str, name: str, where: str) -> Digest:
    """Find the digest of a file in what `sha256sum`, `sha512sum`, BSD's `sha256` or a bare digest look like.

    Signatures around it are passed over. Raises ImageError.
    """
    bare = _BARE.fullmatch(text)
    found = {bare[1].lower()} if bare else {digest.lower() for file, digest in _lines(text) if file == name}
    if len(found) == 1:
        return Digest.of(found.pop())
    problem = f"several different digests of {name}" if found else f"no SHA-256 or SHA-512 of {name}"
    raise ImageError(f"{where} has {problem}, so the image cannot be checked; give it by URL: https://…#sha256=…")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if match := _COREUTILS.fullmatch(line.rstrip()):
            yield match[2], match[1]
        elif match := _BSD.fullmatch(line.rstrip()):
            yield match[1], match[2]
