"""Read the manifest of an evidence folder. It may come from strangers, so every field is checked.

A field may later become a path in the store, an option of ssh, a variable of a container, or a line on a terminal. So
each is parsed like the argument or setting of its name.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

from pytest_virtainers.config import architecture, parsing
from pytest_virtainers.config.arguments import ARGUMENTS
from pytest_virtainers.config.parsing import brief
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.errors import SpecError
from pytest_virtainers.evidence import seals
from pytest_virtainers.ssh import keys
from pytest_virtainers.store import places

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")

FORMAT = 1
MANIFEST, OVERLAY, STATE, SEED, KEY = "manifest.json", "overlay.qcow2", "memory.state", "seed.iso", "ssh_key"
# The other arguments are not needed to start the VM again.
REMEMBERED = (
    "image",
    "ram",
    "cpus",
    "disk",
    "accel",
    "arch",
    "firmware",
    "env",
    "boot_timeout",
    "internet",
    "name",
    "hostname",
)

_MIB = 2**20
_MAX_BYTES = {MANIFEST: _MIB, KEY: 64 * 1024, SEED: 64 * _MIB}
# Holes are sent, too, and an archive of a few bytes can contain a sparse file of any size.
_MAX_HOLES, _SPARE_BYTES = 16, 1024 * _MIB
_MAX_TEXT = 16 * 1024
_MAX_FACTS = 64
_NEEDED: Any = object()


@dataclass(frozen=True)
class Manifest:
    """The checked content of a manifest.

    Attributes:
        user: the login user.
        host_key: the guest's public host key, as a line of `authorized_keys`.
        spec: the specification of the VM, with at least the default time to boot.
        guest_key: the guest image's name in the store.
        guest_digest: SHA-256 of the guest image.
        machine: what must be the same where the memory is loaded; `None` if there is no memory.
        digests: SHA-256 by file name, of the files that the seal covers.
        no_disk: the quoted reason why there is no disk; empty if there is one.
        is_ours: whether this user wrote it on this machine.
    """

    user: str
    host_key: str
    spec: Spec
    guest_key: str
    guest_digest: str
    machine: Mapping[str, Any] | None
    digests: Mapping[str, str]
    no_disk: str
    is_ours: bool


def read(folder: Path) -> Manifest:
    """Read and check the manifest of a folder.

    Raises:
        SpecError: the file is not a manifest, or a field is not valid; the message is one line with folder, field
            and fact.
    """
    where = shown(folder / MANIFEST)
    if not os.path.lexists(folder / MANIFEST):
        raise SpecError(f"{where}: there is no such file. Name the folder of one VM: virtainer-artifacts/TEST/VM")
    try:
        return _parse(where, json.loads(read_file(folder, MANIFEST), parse_constant=_refuse))
    except RecursionError:
        raise SpecError(f"{where}: not a manifest of evidence: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"{where}: not a manifest of evidence: {error}") from None


def open_file(folder: Path, name: str) -> BinaryIO:
    """Open a regular file of the folder; raise `SpecError` if it is not one."""
    where = shown(folder / name)
    try:
        # A link could lead out of the folder, and reading a pipe might never end.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        linked = isinstance(error, OSError) and error.errno == errno.ELOOP
        why = "symbolic links are not followed" if linked else getattr(error, "strerror", error)
        raise SpecError(f"{where}: {why}") from None
    status = os.fstat(descriptor)
    most = _MAX_BYTES.get(name, _MAX_HOLES * 512 * status.st_blocks + _SPARE_BYTES)
    if not stat.S_ISREG(status.st_mode):
        complaint = "not a regular file"
    elif status.st_size > most:
        allocated = f", of which {512 * status.st_blocks} are allocated" if name not in _MAX_BYTES else ""
        complaint = f"it has {status.st_size} bytes{allocated}; at most {most} are allowed"
    else:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise SpecError(f"{where}: {complaint}")


def read_file(folder: Path, name: str) -> bytes:
    """Return the content of a small file of the folder (manifest, key or seed); raise `SpecError`."""
    with open_file(folder, name) as file:
        return file.read(_MAX_BYTES[name])


def spec(found: object, where: str) -> Spec:
    """Parse the specification of a VM; raise `SpecError` with a message that starts with `where`."""
    fields = Fields(where, "spec.", found)
    if unknown := [name for name in fields.found if name not in REMEMBERED]:
        raise SpecError(f"{where}: spec.{_name(unknown[0])} is none of {', '.join(REMEMBERED)}")
    fields.take("image", _printable)
    asked = {
        name: fields.take(name, ARGUMENTS[name].parse) for name, value in fields.found.items() if value is not None
    }
    if "arch" in asked:
        fields.take("arch", parsing.choice(*architecture.FIRMWARE))  # not `auto`
    usual = resolve([]).shape
    try:
        return merge(usual, {"arch": architecture.USUAL, **asked, "template": False})
    except SpecError as error:
        raise SpecError(f"{where}: spec: {error}") from None


def shown(path: Path) -> str:
    """Return a path for a message, quoted and escaped if it has characters that cannot be printed."""
    text = str(path)
    return text if text.isprintable() else repr(text)


class Fields:
    """The fields of a mapping, checked one by one; an error is a `SpecError` with folder, field and fact.

    Args:
        where: the path of the file.
        prefix: of the field names in messages, with its dot.
        found: the mapping.
    """

    def __init__(self, where: str, prefix: str, found: object) -> None:
        self._where, self._prefix = where, prefix
        if not isinstance(found, dict):
            field = prefix.rstrip(".") or "the manifest"
            raise SpecError(f"{where}: {field}={brief(found)}: expected a mapping")
        self.found: dict[str, Any] = found

    def take(self, name: str, parse: Callable[[Any], T], default: T = _NEEDED) -> T:
        """Return a parsed field, or the default if it is missing."""
        if name not in self.found:
            if default is _NEEDED:
                raise SpecError(f"{self._where}: {self._prefix}{name} is missing")
            return default
        try:
            return parse(self.found[name])
        except ValueError as error:
            value = brief(self.found[name])
            raise SpecError(f"{self._where}: {self._prefix}{_name(name)}={value}: {error}") from None

    def inner(self, name: str) -> Fields:
        """Return the fields of a field, or no fields if it is missing."""
        return Fields(self._where, f"{self._prefix}{name}.", self.found.get(name, {}))


def _parse(where: str, found: object) -> Manifest:
    fields = Fields(where, "", found)
    fields.take("format", _format)
    guest, machine, digests = fields.inner("guest"), fields.inner("machine"), fields.inner("sha256")
    has_memory = machine.take("memory", _is_true, default=False)
    facts = machine.inner("machine")
    if len(facts.found) > _MAX_FACTS:
        raise SpecError(f"{where}: machine.machine has {len(facts.found)} entries; at most {_MAX_FACTS} are allowed")
    checked = {name: facts.take(name, _fact) for name in facts.found}
    asked = spec(fields.found.get("spec"), where)
    usual = resolve([]).shape["boot_timeout"]  # a too short time may be why it failed
    return Manifest(
        user=fields.take("user", parsing.user_name),
        host_key=fields.take("host_key", keys.public_line),
        spec=replace(asked, boot_timeout=max(usual, asked.boot_timeout)),
        guest_key=guest.take("key", places.key),
        guest_digest=guest.take("digest", parsing.sha256),
        machine=checked if has_memory else None,
        digests={name: digests.take(name, parsing.sha256) for name in (OVERLAY, STATE) if name in digests.found},
        no_disk=brief(lacks) if (lacks := fields.inner("missing").found.get(OVERLAY)) else "",
        is_ours=seals.is_ours(fields.found),
    )


def _format(value: object) -> int:
    if value is True or value != FORMAT:
        raise ValueError(f"it was written by another version; this version reads format {FORMAT}")
    return FORMAT


def _is_true(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")  # noqa: TRY004  (one error type for all parsers)
    return value


def _printable(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_TEXT:
        raise ValueError(f"expected at most {_MAX_TEXT} printable characters")
    return value


def _fact(value: object) -> str | int | bool:
    return value if isinstance(value, bool | int) else _printable(value)


def _name(name: str) -> str:
    """Return a field's name for a message; it may be any text."""
    return name if name.isidentifier() and name.isascii() else brief(name)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
