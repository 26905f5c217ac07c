"""Digests that distributors publish with their images, in all common formats."""

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
        url: of the file.
        keyring: a file with public keys, one of which must have signed it; `None` trusts TLS.
        signature: URL of a detached signature; empty if the file contains its signature.
    """

    url: str
    keyring: Path | None = None
    signature: str = ""


def published(source: Source, name: str, file: Path, report: Callable[[str], object]) -> Digest:
    """Download published digests and return that of the file `name`.

    Args:
        source: of the digests.
        name: of the file, without a path.
        file: a temporary file for the digests.
        report: called with the progress.

    Raises:
        ImageError: the server does not answer, has no such digest, or the signature is not valid.
        StoreError: the temporary file cannot be written.
    """
    detached = file.with_name(f"{file.name}.signature") if source.signature else None
    try:
        download.fetch(source.url, None, file, report)
        if detached is not None:
            download.fetch(source.signature, None, detached, report)
        text = signatures.signed(file, source.url, source.keyring, detached) if source.keyring else file.read_bytes()
        return find(text.decode(errors="replace"), name, source.url)
    finally:
        file.unlink(missing_ok=True)
        if detached is not None:
            detached.unlink(missing_ok=True)


def find(text: str, name: str, where: str) -> Digest:
    """Find the digest of a file in the output of `sha256sum`, `sha512sum` or BSD's `sha256`, or a bare digest.

    Other lines, such as signatures, are ignored. Raises `ImageError` if there is no digest, or more than one.
    """
    bare = _BARE.fullmatch(text)
    found = {bare[1].lower()} if bare else {digest.lower() for file, digest in _lines(text) if file == name}
    if len(found) == 1:
        return Digest.of(found.pop())
    problem = f"several different digests of {name}" if found else f"no SHA-256 or SHA-512 of {name}"
    raise ImageError(f"{where} has {problem}, so the image cannot be verified. Use a URL: https://…#sha256=…")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if match := _COREUTILS.fullmatch(line.rstrip()):
            yield match[2], match[1]
        elif match := _BSD.fullmatch(line.rstrip()):
            yield match[1], match[2]
