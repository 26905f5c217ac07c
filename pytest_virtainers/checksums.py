"""Digests that distributors publish beside their images, in all the ways in which they do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_virtainers.errors import ImageError
from pytest_virtainers.fetch import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEX = r"([0-9a-fA-F]{64}(?:[0-9a-fA-F]{64})?)"
_COREUTILS = re.compile(rf"{_HEX} [ *]?(?:\./)?(\S+)")
_BSD = re.compile(rf"SHA(?:256|512) ?\((?:\./)?([^)]+)\) ?= ?{_HEX}")
_BARE = re.compile(rf"\s*{_HEX}\s*")
_MOST_BYTES = 4 * 1024 * 1024
_SECONDS = 60.0


def published(url: str, name: str) -> Digest:
    """Ask a server for the digest of a file called `name`.

    Raises:
        ImageError: it does not answer, or has no such digest.
    """
    return find(_text(url), name, url)


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


def _text(url: str) -> str:
    import requests

    try:
        with requests.get(url, stream=True, timeout=_SECONDS) as answer:
            answer.raise_for_status()
            if any(not each.url.startswith("https:") for each in (*answer.history, answer)):
                raise ImageError(f"asking for {url} failed: it leads to {answer.url} by way of http")
            data = next(answer.iter_content(_MOST_BYTES), b"")
    except requests.RequestException as error:
        raise ImageError(f"asking for {url} failed: {error}") from None
    return data.decode(errors="replace")
