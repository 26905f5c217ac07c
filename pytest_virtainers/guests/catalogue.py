"""Guest images by name: those of this project, and those that users add.

They are read from `catalogue.toml` next to this module, `virtainers/images.toml` in `XDG_CONFIG_HOME`, and the table
`tool.virtainers.images` in the nearest `pyproject.toml` that has one. A later entry replaces an earlier one of its
name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config import parsing
from pytest_virtainers.config.architecture import FIRMWARE, USUAL, check_firmware
from pytest_virtainers.engine import build_context
from pytest_virtainers.errors import ImageError
from pytest_virtainers.guests import download
from pytest_virtainers.guests.checksums import Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_virtainers.guests.download import Digest

DEFAULT_USER = "tester"
"""The account that is created in a guest for which no other is known."""

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
_KEYS = frozenset(
    {"url", "user", "aliases", "sha256", "sha512", "checksums", "keyring", "signature", "firmware", "arch", "note"}
)
_PARSERS = {
    "user": parsing.user_name,
    "firmware": parsing.choice("bios", "uefi"),
    "arch": parsing.choice(*FIRMWARE),
}


@dataclass(frozen=True)
class _Entry:
    """A guest image: its name and login user."""

    name: str
    user: str

    @property
    def key(self) -> str:
        """The name of its disk in the store."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        """The folder of its disk in the store."""
        return f"guests/{self.key}"


@dataclass(frozen=True)
class Recipe(_Entry):
    """A disk that is built from packages: the folder of the recipe and its arguments."""

    recipe: str
    suite: str
    flavour: str = ""
    arch: str = USUAL

    @property
    def key(self) -> str:
        """The name of its disk in the store; it changes with the recipe, not with the packages of the mirror."""
        return f"{self.name}-{build_context.digest(self.recipe)}"


@dataclass(frozen=True)
class Published(_Entry):
    """A published disk.

    Attributes:
        url: of the file.
        digest: of the file as downloaded; `None` if it is in `checksums`, or not known.
        checksums: a file with digests on a server.
        firmware: from which it boots; empty: the default of its architecture.
        arch: the CPU architecture of its VMs.
        note: a hint for users.
    """

    url: str
    digest: Digest | None = None
    checksums: Source | None = None
    firmware: str = ""
    arch: str = USUAL
    note: str = ""

    @property
    def key(self) -> str:
        """The name of its disk in the store; a new version under the same URL is not noticed."""
        origin = f"{self.url} {self.digest.value if self.digest else ''}"
        return f"{self.name}-{hashlib.sha256(origin.encode()).hexdigest()[:16]}"


Entry = Recipe | Published


def catalogue() -> Mapping[str, Entry]:
    """Return all entries by name and alias; raise `ImageError` for an invalid one."""
    found = dict(_own())
    for source, images in _added():
        for name, facts in images.items():
            entry, aliases = _published(source, name, facts)
            found.update(dict.fromkeys((name, *aliases), entry))
    return found


def is_own(name: str) -> bool:
    """Return whether a name is that of an image of this project that no user has replaced; raise `ImageError`."""
    own = _own().get(name)
    return own is not None and catalogue()[name] == own


@functools.cache
def _own() -> Mapping[str, Entry]:
    found: dict[str, Entry] = {}
    path = Path(__file__).with_suffix(".toml")
    for name, facts in tomllib.loads(path.read_text()).items():
        if "recipe" in facts:
            options = {key: facts[key] for key in ("flavour", "arch") if key in facts}
            entry: Entry = Recipe(name, facts["user"], facts["recipe"], facts["suite"], **options)
            aliases = facts["aliases"]
        else:
            entry, aliases = _published(str(path), name, facts)
        found.update(dict.fromkeys((name, *aliases), entry))
    return found


def _added() -> Iterator[tuple[str, Mapping[str, Any]]]:
    with contextlib.suppress(RuntimeError):  # this user has no home folder
        path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "virtainers" / "images.toml"
        own = _read(path)
        if own is not None:
            yield str(path), own
    for folder in (Path.cwd(), *Path.cwd().parents):
        images: Any = _read(folder / "pyproject.toml")
        for name in ("tool", "virtainers", "images"):
            images = images.get(name) if isinstance(images, dict) else None
        if images is not None:
            source = f"{folder / 'pyproject.toml'}: tool.virtainers.images"
            if not isinstance(images, dict):
                raise ImageError(f"{source}: expected a table for each image, not {images!r}")
            yield source, images
            return


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {path}: {error}") from None


def _published(source: str, name: str, facts: Any) -> tuple[Published, tuple[str, ...]]:
    """Parse an entry; return it with its aliases, or raise `ImageError`."""
    wrong = f"{source}: image {name}: "
    if not _NAME.fullmatch(name):
        raise ImageError(f"{wrong}a name may only contain letters, digits, dots, dashes and underscores")
    if not isinstance(facts, dict):
        raise ImageError(f"{wrong}expected a table with a url")
    if unknown := facts.keys() - _KEYS:
        raise ImageError(f"{wrong}unknown key {', '.join(sorted(unknown))}; valid keys: {', '.join(sorted(_KEYS))}")
    aliases = facts.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(each, str) for each in aliases):
        raise ImageError(f"{wrong}aliases must be a list of names")
    for key in _KEYS - {"aliases"}:
        if not isinstance(facts.get(key, ""), str):
            raise ImageError(f"{wrong}{key} must be a string, not {facts[key]!r}")
    if "url" not in facts:
        raise ImageError(f"{wrong}url is missing")
    digests = [key for key in ("sha256", "sha512", "checksums") if key in facts]
    if len(digests) > 1:
        raise ImageError(f"{wrong}use only one of {' and '.join(digests)}")
    suffix = f"#{digests[0]}={facts[digests[0]]}" if digests and digests[0] != "checksums" else ""
    checksums, machine = _checksums(facts, wrong), _machine(facts, wrong)
    try:
        url, digest = download.split(facts["url"] + suffix)
    except ImageError as error:
        raise ImageError(f"{wrong}{error}") from None
    note = facts.get("note", "")
    return Published(name, machine.pop("user"), url, digest, checksums, **machine, note=note), tuple(aliases)


def _checksums(facts: Mapping[str, str], wrong: str) -> Source | None:
    """Parse the source of an entry's digests; raise `ImageError`."""
    for key, needed in (("signature", "keyring"), ("keyring", "checksums")):
        if key in facts and needed not in facts:
            raise ImageError(f"{wrong}{key} requires {needed}")
    for key in ("checksums", "signature"):
        if key in facts and not facts[key].startswith("https://"):
            raise ImageError(f"{wrong}{key}={facts[key]}: the URL must start with https://")
    if "checksums" not in facts:
        return None
    try:
        keyring = Path(facts["keyring"]).expanduser() if "keyring" in facts else None
    except RuntimeError as error:  # this user has no home folder
        raise ImageError(f"{wrong}keyring={facts['keyring']}: {error}") from None
    if keyring is not None and not keyring.is_absolute():
        raise ImageError(f"{wrong}keyring={facts['keyring']}: the path must start with / or ~")
    return Source(facts["checksums"], keyring, facts.get("signature", ""))


def _machine(facts: Mapping[str, str], wrong: str) -> dict[str, str]:
    """Parse an entry's user, firmware and architecture; raise `ImageError`."""
    found = {"user": DEFAULT_USER, "firmware": "", "arch": USUAL}
    for key in found.keys() & facts.keys():
        try:
            found[key] = _PARSERS[key](facts[key])
        except ValueError as error:
            raise ImageError(f"{wrong}{key}={facts[key]!r}: {error}") from None
    try:
        check_firmware(found["arch"], found["firmware"])
    except ValueError as error:
        raise ImageError(f"{wrong}{error}") from None
    return found
