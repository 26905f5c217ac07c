"""The manifest of a folder of evidence. It may come from strangers: nothing of it is used that was not checked.

What becomes of a field later (a path in the store, an option of ssh, a variable of a container, a line on a terminal)
is not known here, so each is held to the same parser as the argument or setting of its name.
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
from pytest_virtainers.store import volume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")

FORMAT = 1
MANIFEST, OVERLAY, STATE, SEED, KEY = "manifest.json", "overlay.qcow2", "memory.state", "seed.iso", "ssh_key"
# What only says who a machine is and what it waits for is not needed to start it again.
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
_MOST_BYTES = {MANIFEST: _MIB, KEY: 64 * 1024, SEED: 64 * _MIB}
# A file that is mostly a hole is sent as a whole: archives bring files of any length in a few bytes.
_MOST_HOLES, _SPARE_BYTES = 16, 1024 * _MIB
_LONGEST_TEXT = 16 * 1024
_MOST_FACTS = 64
_NEEDED: Any = object()


@dataclass(frozen=True)
class Manifest:
    """What a manifest says, checked.

    Attributes:
        user: the login user.
        host_key: the public key by which the guest is known, as a line of `authorized_keys`.
        spec: what the VM was asked to be; its boot has at least the usual time.
        guest_key: the guest image's name in the store.
        guest_digest: its SHA-256.
        machine: what has to be the same where the memory is loaded; None: no memory was kept.
        digests: SHA-256 by file name, of files that are believed because of the seal.
        no_disk: why the disk could not be kept, quoted; empty: it was kept.
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
        SpecError: it is no manifest, or one of its fields is not what it should be; the message is one line with
            folder, field and fact.
    """
    where = shown(folder / MANIFEST)
    if not os.path.lexists(folder / MANIFEST):
        raise SpecError(f"{where}: there is no such file. Name the folder of one VM: virtainer-artifacts/TEST/VM")
    try:
        return _parse(where, json.loads(read_file(folder, MANIFEST), parse_constant=_refuse))
    except RecursionError:
        raise SpecError(f"{where}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"{where}: it is no manifest of evidence: {error}") from None


def open_file(folder: Path, name: str) -> BinaryIO:
    """Open a file of the folder, which has to be one; raise `SpecError`."""
    where = shown(folder / name)
    try:
        # Neither a link nor a pipe: it would lead out of the folder, or never end.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        linked = isinstance(error, OSError) and error.errno == errno.ELOOP
        why = "it is a symbolic link, which is not followed" if linked else getattr(error, "strerror", error)
        raise SpecError(f"{where}: {why}") from None
    status = os.fstat(descriptor)
    most = _MOST_BYTES.get(name, _MOST_HOLES * 512 * status.st_blocks + _SPARE_BYTES)
    if not stat.S_ISREG(status.st_mode):
        complaint = "it is no regular file"
    elif status.st_size > most:
        held = f", of which {512 * status.st_blocks} are there" if name not in _MOST_BYTES else ""
        complaint = f"it has {status.st_size} bytes{held}: at most {most} are taken"
    else:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise SpecError(f"{where}: {complaint}")


def read_file(folder: Path, name: str) -> bytes:
    """Read a small file of the folder: manifest, key or seed; raise `SpecError`."""
    with open_file(folder, name) as file:
        return file.read(_MOST_BYTES[name])


def spec(found: object, where: str) -> Spec:
    """Check what a VM was asked to be; raise `SpecError`, whose message starts with `where`."""
    fields = Fields(where, "spec.", found)
    if unknown := [name for name in fields.found if name not in REMEMBERED]:
        raise SpecError(f"{where}: spec.{_name(unknown[0])} is none of {', '.join(REMEMBERED)}")
    fields.take("image", _printable)
    asked = {
        name: fields.take(name, ARGUMENTS[name].parse) for name, value in fields.found.items() if value is not None
    }
    if "arch" in asked:
        fields.take("arch", parsing.choice(*architecture.FIRMWARE))  # that of one machine
    usual = resolve([]).shape
    try:
        return merge(usual, {"arch": architecture.USUAL, **asked, "template": False})
    except SpecError as error:
        raise SpecError(f"{where}: spec: {error}") from None


def shown(path: Path) -> str:
    """Return a path for a message: quoted and escaped if it could be misread, or write to a terminal."""
    text = str(path)
    return text if text.isprintable() else repr(text)


class Fields:
    """The fields of a mapping, checked one by one; what is wrong raises `SpecError` with folder, field and fact.

    Args:
        where: the file.
        prefix: of the fields' names, with its dot.
        found: that is to be a mapping.
    """

    def __init__(self, where: str, prefix: str, found: object) -> None:
        self._where, self._prefix = where, prefix
        if not isinstance(found, dict):
            whose = prefix.rstrip(".") or "it"
            raise SpecError(f"{where}: {whose}={brief(found)}: a mapping is expected")
        self.found: dict[str, Any] = found

    def take(self, name: str, parse: Callable[[Any], T], default: T = _NEEDED) -> T:
        """Return what `parse` makes of a field, or the default where there is none."""
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
        """Return the fields of a field; there is none in one that is missing."""
        return Fields(self._where, f"{self._prefix}{name}.", self.found.get(name, {}))


def _parse(where: str, found: object) -> Manifest:
    fields = Fields(where, "", found)
    fields.take("format", _format)
    guest, machine, digests = fields.inner("guest"), fields.inner("machine"), fields.inner("sha256")
    has_memory = machine.take("memory", _is_true, default=False)
    facts = machine.inner("machine")
    if len(facts.found) > _MOST_FACTS:
        raise SpecError(f"{where}: machine.machine has {len(facts.found)} entries: at most {_MOST_FACTS} are taken")
    checked = {name: facts.take(name, _fact) for name in facts.found}
    asked = spec(fields.found.get("spec"), where)
    usual = resolve([]).shape["boot_timeout"]  # one that had too little time gets the usual
    return Manifest(
        user=fields.take("user", parsing.user_name),
        host_key=fields.take("host_key", keys.public_line),
        spec=replace(asked, boot_timeout=max(usual, asked.boot_timeout)),
        guest_key=guest.take("key", volume.key),
        guest_digest=guest.take("digest", parsing.sha256),
        machine=checked if has_memory else None,
        digests={name: digests.take(name, parsing.sha256) for name in (OVERLAY, STATE) if name in digests.found},
        no_disk=brief(lacks) if (lacks := fields.inner("missing").found.get(OVERLAY)) else "",
        is_ours=seals.is_ours(fields.found),
    )


def _format(value: object) -> int:
    if value is True or value != FORMAT:
        raise ValueError(f"another version wrote it; this one reads {FORMAT}")
    return FORMAT


def _is_true(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is expected")  # noqa: TRY004  (one error type for all parsers)
    return value


def _printable(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST_TEXT:
        raise ValueError(f"text of at most {_LONGEST_TEXT} characters that can be printed is expected")
    return value


def _fact(value: object) -> str | int | bool:
    return value if isinstance(value, bool | int) else _printable(value)


def _name(name: str) -> str:
    """Show a field's name, which may be anything, in a message."""
    return name if name.isidentifier() and name.isascii() else brief(name)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
