"""Digests that distributors publish beside their images, in all the ways in which they do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_virtainers import fetch
from pytest_virtainers.errors import ImageError
from pytest_virtainers.fetch import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_HEX = r"([0-9a-fA-F]{64}(?:[0-9a-fA-F]{64})?)"
_COREUTILS = re.compile(rf"{_HEX} [ *]?(?:\./)?(\S+)")
_BSD = re.compile(rf"SHA(?:256|512) ?\((?:\./)?([^)]+)\) ?= ?{_HEX}")
_BARE = re.compile(rf"\s*{_HEX}\s*")


def published(url: str, name: str, file: Path, tell: Callable[[str], object]) -> Digest:
    """Fetch the digests that a server has, and give that of the file called `name`.

    `file` is where they are for the moment; otherwise it is as with `fetch.fetch`.

    Raises:
        ImageError: it does not answer, or has no such digest.
        StoreError: it cannot be written.
    """
    try:
        fetch.fetch(url, None, file, tell)
        return find(file.read_text(errors="replace"), name, url)
    finally:
        file.unlink(missing_ok=True)


def find(text: str, name: str, where: str) -> Digest:
    """Find the digest of a file in what `sha256sum`, `sha512sum`, BSD's `sha256` or a bare digest look like.

    Signatures around it are not looked at. Raises ImageError.
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
