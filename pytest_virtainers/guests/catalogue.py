"""Guest images by name: those of this project, and those that users add.

Later ones replace earlier ones of the same name: `catalogue.toml` beside this module, `virtainers/images.toml` in
`XDG_CONFIG_HOME`, and the table `tool.virtainers.images` in the nearest `pyproject.toml` that has one.
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
"""The account made in guests of which nothing else is known."""

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
    """A guest image: its name, and the login user."""

    name: str
    user: str

    @property
    def key(self) -> str:
        """Where its disk is in the store."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        """Its folder in the store."""
        return f"guests/{self.key}"


@dataclass(frozen=True)
class Recipe(_Entry):
    """A disk that is built from packages: the folder of the recipe, and what is told to it."""

    recipe: str
    suite: str
    flavour: str = ""
    arch: str = USUAL

    @property
    def key(self) -> str:
        """Where its disk is in the store; changes whenever the recipe does, not when the mirror's packages do."""
        return f"{self.name}-{build_context.digest(self.recipe)}"


@dataclass(frozen=True)
class Published(_Entry):
    """A disk that somebody publishes.

    Attributes:
        url: where it is.
        digest: of the file there; None: `checksums` says it, or nobody does.
        checksums: a file with digests on a server.
        firmware: from which it boots; empty: what is usual for its architecture.
        arch: the architecture of the machines that it is for.
        note: what its users should know.
    """

    url: str
    digest: Digest | None = None
    checksums: Source | None = None
    firmware: str = ""
    arch: str = USUAL
    note: str = ""

    @property
    def key(self) -> str:
        """Where its disk is in the store. What is published anew under the same URL is not asked for again."""
        origin = f"{self.url} {self.digest.value if self.digest else ''}"
        return f"{self.name}-{hashlib.sha256(origin.encode()).hexdigest()[:16]}"


Entry = Recipe | Published


def catalogue() -> Mapping[str, Entry]:
    """Read all of it; each entry stands under its name and its aliases. Raises `ImageError`."""
    found = dict(_own())
    for source, images in _of_users():
        for name, facts in images.items():
            entry, aliases = _published(source, name, facts)
            found.update(dict.fromkeys((name, *aliases), entry))
    return found


def is_own(name: str) -> bool:
    """Return whether this is the name of an image of the project, which no user has replaced. Raises `ImageError`."""
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


def _of_users() -> Iterator[tuple[str, Mapping[str, Any]]]:
    with contextlib.suppress(RuntimeError):  # this user has no home
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
                raise ImageError(f"{source} should be tables, one for each image, not {images!r}")
            yield source, images
            return


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read: {error}") from None


def _published(source: str, name: str, facts: Any) -> tuple[Published, tuple[str, ...]]:
    """Read an entry; raises `ImageError`."""
    wrong = f"{source}: the image {name}: "
    if not _NAME.fullmatch(name):
        raise ImageError(f"{wrong}a name has letters, digits, dots, dashes and underscores only")
    if not isinstance(facts, dict):
        raise ImageError(f"{wrong}expected a table with a url")
    if unknown := facts.keys() - _KEYS:
        raise ImageError(f"{wrong}unknown: {', '.join(sorted(unknown))}; known are {', '.join(sorted(_KEYS))}")
    aliases = facts.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(each, str) for each in aliases):
        raise ImageError(f"{wrong}aliases should be a list of names")
    for key in _KEYS - {"aliases"}:
        if not isinstance(facts.get(key, ""), str):
            raise ImageError(f"{wrong}{key} should be text, not {facts[key]!r}")
    if "url" not in facts:
        raise ImageError(f"{wrong}a url is needed")
    said = [key for key in ("sha256", "sha512", "checksums") if key in facts]
    if len(said) > 1:
        raise ImageError(f"{wrong}of {' and '.join(said)}, one is enough")
    suffix = f"#{said[0]}={facts[said[0]]}" if said and said[0] != "checksums" else ""
    checksums, told = _checksums(facts, wrong), _told(facts, wrong)
    try:
        url, digest = download.split(facts["url"] + suffix)
    except ImageError as error:
        raise ImageError(f"{wrong}{error}") from None
    note = facts.get("note", "")
    return Published(name, told.pop("user"), url, digest, checksums, **told, note=note), tuple(aliases)


def _checksums(facts: Mapping[str, str], wrong: str) -> Source | None:
    """Read where an entry's digests are, and whose they are; raises `ImageError`."""
    for key, needed in (("signature", "keyring"), ("keyring", "checksums")):
        if key in facts and needed not in facts:
            raise ImageError(f"{wrong}{key} is of no use without {needed}")
    for key in ("checksums", "signature"):
        if key in facts and not facts[key].startswith("https://"):
            raise ImageError(f"{wrong}{key}={facts[key]}: only https:// can be believed")
    if "checksums" not in facts:
        return None
    try:
        keyring = Path(facts["keyring"]).expanduser() if "keyring" in facts else None
    except RuntimeError as error:  # this user has no home
        raise ImageError(f"{wrong}keyring={facts['keyring']}: {error}") from None
    if keyring is not None and not keyring.is_absolute():
        raise ImageError(f"{wrong}keyring={facts['keyring']}: a path from / or ~ is needed")
    return Source(facts["checksums"], keyring, facts.get("signature", ""))


def _told(facts: Mapping[str, str], wrong: str) -> dict[str, str]:
    """Read what an entry says of its guest; raises `ImageError`."""
    told = {"user": DEFAULT_USER, "firmware": "", "arch": USUAL}
    for key in told.keys() & facts.keys():
        try:
            told[key] = _PARSERS[key](facts[key])
        except ValueError as error:
            raise ImageError(f"{wrong}{key}={facts[key]!r}: {error}") from None
    try:
        check_firmware(told["arch"], told["firmware"])
    except ValueError as error:
        raise ImageError(f"{wrong}{error}") from None
    return told
