"""Digests of what is in the store: a guest image's disk and the files of templates (the command `verify`).

`image.fingerprint` looks at samples, at each start; this reads everything.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEMPLATE = "template.json"
MISSING = "it is missing"
_MANIFEST, _DISK = "manifest.json", "disk.qcow2"
_BLOCK = 2**20
_EMPTY = bytes(_BLOCK)
_PIECES = 8  # blocks between two rests
_SHARE = 3  # seconds of rest for each second of work
_NICEST = 19


def sparse(path: Path, rest: Callable[[], object] = lambda: None) -> str:
    """Return the SHA-256 of a file's length and of those of its blocks that are not all zero, with their offsets.

    So unused RAM of a VM costs nothing, and copies with holes and with zeros have the same digest.
    """
    with path.open("rb", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(length.to_bytes(8, "big"))
        for number, start in enumerate(_blocks(file.fileno(), length)):
            if number % _PIECES == _PIECES - 1:
                rest()
            block = os.pread(file.fileno(), _BLOCK, start)
            if block != _EMPTY[: len(block)]:
                digest.update(start.to_bytes(8, "big"))
                digest.update(block)
    return digest.hexdigest()


def _blocks(file: int, length: int) -> Iterator[int]:
    """Yield the offsets of blocks with data."""
    after = 0
    while after < length:
        try:
            data = os.lseek(file, after, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # the rest is a hole
                raise
            return
        start = data // _BLOCK * _BLOCK
        hole = min(os.lseek(file, data, os.SEEK_HOLE), length)
        for block in range(max(start, after), hole, _BLOCK):
            yield block
            after = block + _BLOCK


def plain(path: Path, rest: Callable[[], object] = lambda: None) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for number, block in enumerate(iter(lambda: file.read(_BLOCK), b"")):
            digest.update(block)
            if number % _PIECES == _PIECES - 1:
                rest()
    return digest.hexdigest()


def verify(folder: Path, rest: Callable[[], object] = lambda: None) -> Iterator[dict[str, Any]]:
    """Compare each file of a guest image or template with its digest.

    Yields:
        `file`, `was` (None when no digest was taken of it), and `sha256` (None when it cannot be read, and `error`
        says why).
    """
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        yield _row(TEMPLATE if folder.parent.name == "templates" else _MANIFEST, error=_words(error))
        return
    try:  # a folder that replaces it now is another one
        yield from _verify(Path(f"/proc/self/fd/{opened}"), rest)
    finally:
        os.close(opened)


def _verify(folder: Path, rest: Callable[[], object]) -> Iterator[dict[str, Any]]:
    name, read = (TEMPLATE, sparse) if (folder / TEMPLATE).exists() else (_MANIFEST, plain)
    try:
        expected = _expected(json.loads((folder / name).read_text()))
    except OSError as error:
        yield _row(name, error=_words(error))
        return
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        yield _row(name, error=f"it cannot be read ({type(error).__name__})")
        return
    for each, was in expected.items():
        try:
            yield _row(each, read(folder / each, rest), was)
        except OSError as error:
            yield _row(each, None, was, _words(error))


def _expected(facts: dict[str, Any]) -> dict[str, str | None]:
    """Return the digests that were taken, by file, from `template.json` or from a manifest."""
    if "prints" in facts:
        return dict(facts["digests"]) if "digests" in facts else dict.fromkeys(facts["prints"])
    if "keys" in facts:  # the manifest of a template that only records why its shape cannot be cloned
        return {}
    about = facts["disk"]
    return {_DISK: about.get("stored_sha256", about.get("sha256"))}


def _row(file: str, sha256: str | None = None, was: str | None = None, error: str = "") -> dict[str, Any]:
    return {"file": file, "sha256": sha256, "was": was, "error": error}


def _words(error: OSError) -> str:
    return MISSING if isinstance(error, FileNotFoundError) else f"it cannot be read: {error.strerror}"


def _be_gentle() -> Callable[[], object]:
    """Lower the priority: the lowest one for processor and disk, and a quarter of one processor.

    The share matters most: engines give each container an equal part of the machine.
    """
    os.nice(_NICEST)
    with contextlib.suppress(OSError):  # some engines forbid it
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    worked = time.process_time()

    def rest() -> None:
        nonlocal worked
        print(flush=True)  # the reader may have ended
        time.sleep((time.process_time() - worked) * _SHARE)
        worked = time.process_time()

    return rest


def main(arguments: list[str]) -> int:
    """Run the command: one JSON object a line; exit code 0 even when something is damaged, 2 for wrong usage."""
    gently = arguments[:1] == ["--gently"]
    folders = arguments[gently:]
    if not folders:
        print("usage: verify [--gently] FOLDER...", file=sys.stderr)
        return 2
    rest = _be_gentle() if gently else lambda: None
    for folder in folders:
        for row in verify(Path(folder), rest):
            print(json.dumps({"folder": folder, **row}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
