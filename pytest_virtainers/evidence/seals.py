"""Seals that distinguish evidence written by this user on this machine from other evidence.

A seal is an HMAC over the manifest, with a key that only this user can read. The manifest has the digests of the
files that are trusted because of the seal.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from typing import TYPE_CHECKING, Any

from pytest_virtainers.support.files import open_private
from pytest_virtainers.support.paths import cache_folder, locked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FIELD = "seal"
"""The field of the manifest with the seal."""
_KEY_BYTES = 32


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with a seal, for `json.dumps`; raise `SpecError` or `OSError` if there is no key."""
    return {**manifest, FIELD: _hmac(manifest, _key())}


def is_ours(manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest, as read by `json.loads`, has a seal of this user on this machine."""
    found = manifest.get(FIELD)
    return isinstance(found, str) and hmac.compare_digest(
        found.encode(errors="replace"), _hmac(manifest, _key()).encode()
    )


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or raise `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hmac(manifest: Mapping[str, Any], key: bytes) -> str:
    plain = json.loads(json.dumps({name: value for name, value in manifest.items() if name != FIELD}))
    return hmac.new(key, json.dumps(plain, sort_keys=True).encode(), "sha256").hexdigest()


def _key() -> bytes:
    """Return this user's key, created if necessary; a key that others could read is replaced."""
    path = cache_folder() / "evidence.key"
    with locked("evidence-key"):
        if (found := _read(path)) is not None:
            return found
        key = secrets.token_bytes(_KEY_BYTES)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with open_private(part, "xb") as file:
            file.write(key)
        part.replace(path)
        return key


def _read(path: Path) -> bytes | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return None
        key = os.read(file, _KEY_BYTES + 1)
    finally:
        os.close(file)
    return key if len(key) == _KEY_BYTES else None
