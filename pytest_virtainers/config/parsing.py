"""Parsers of arguments and settings.

Each takes a value as a person wrote it (text from an option, or a Python value from a marker), returns it in its
unit, and raises `ValueError` with the allowed forms. `pairs` and `guest_files` convert text from the command line to
such values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_virtainers.vm.vm import VM


_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?)(i?B)?", re.ASCII | re.IGNORECASE)
_MIB_PER_UNIT = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 * 1024}
_MOST_MIB = 2**30  # 1 PiB
_MOST_SECONDS = 10.0**9  # what operating systems wait for
_RATE = re.compile(r"(?P<number>\d+)\s*((?P<unit>[kmg]?)bit(/s)?)?", re.IGNORECASE)
_BITS_PER_UNIT = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SHA256 = re.compile("[0-9a-f]{64}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_LONGEST_SHOWN = 60


class Unreadable(ValueError):
    """A local file that an argument names cannot be read at present."""


def brief(value: object) -> str:
    """Return a value for a message: quoted and escaped, and only the beginning of a long one."""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 3]}…"


def size_mib(least: int) -> Callable[[object], int]:
    """Return a parser of sizes in MiB, at least `least` MiB: `1024`, `"1024M"`, `"2G"`, `"2GiB"`."""

    def parse(value: object) -> int:
        written = _SIZE.fullmatch(str(value).strip()) if isinstance(value, int | str) else None
        if written is None or isinstance(value, bool):
            raise ValueError("a size is a number of MiB, or text such as 512M, 2G or 2GiB")
        mib = float(written["number"]) * _MIB_PER_UNIT[written["unit"].upper()]
        if not least <= mib <= _MOST_MIB or mib != int(mib):
            raise ValueError(f"a whole number of MiB is needed, at least {least}M and at most {_MOST_MIB}M")
        return int(mib)

    return parse


def bits_per_second(value: object) -> int:
    """Parse a rate: bits a second, or text such as `512kbit`, `10Mbit` or `1Gbit` (decimal, as networks count)."""
    written = _RATE.fullmatch(str(value).strip()) if isinstance(value, int | str) else None
    if written is None or isinstance(value, bool) or int(written["number"]) < 1:
        raise ValueError("a rate is a number of bits a second, or text such as 512kbit, 10Mbit or 1Gbit")
    return int(written["number"]) * _BITS_PER_UNIT[(written["unit"] or "").lower()]


def size_or_share(value: object) -> Callable[[int], int]:
    """Parse a size, or a share such as `80%`; return a function from the whole to the size, both in MiB."""
    share = re.fullmatch(r"([1-9]\d?|100)%", str(value).strip())
    if share is not None:
        percent = int(share[1])
        return lambda whole_mib: whole_mib * percent // 100
    try:
        size = size_mib(least=64)(value)
    except ValueError as error:
        raise ValueError(f"{error}; or a share such as 80%") from None
    return lambda _whole_mib: size


def whole_number(value: object) -> int:
    """Parse a whole number from 1 on."""
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}", str(value)) or int(str(value)) < 1:
        raise ValueError("a whole number from 1 on is needed")
    return int(str(value))


def count_or_all(value: object) -> int | None:
    """Parse a whole number from 1 on, or `all`, which is None."""
    try:
        return None if value == "all" else whole_number(value)
    except ValueError as error:
        raise ValueError(f"{error}; or all") from None


def seconds(value: object) -> float:
    """Parse a time in seconds, above 0."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
    except (OverflowError, ValueError):
        number = 0.0
    if not 0 < number <= _MOST_SECONDS:
        raise ValueError(f"a time in seconds above 0 is needed, at most {_MOST_SECONDS:.0f}")
    return number


def choice(*allowed: str) -> Callable[[object], str]:
    """Return a parser of one of the given words."""

    def parse(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"allowed are {', '.join(allowed)}")
        return str(value)

    return parse


def switch(value: object) -> bool:
    """Parse `on` or `off` (in Python also True and False)."""
    words = {"on": True, "off": False, True: True, False: False}
    if not isinstance(value, str | bool) or value not in words:
        raise ValueError("allowed are on and off")
    return words[value]


def text(value: object) -> str:
    """Parse text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text that is not empty is needed")
    return value


def host_name(value: object) -> str:
    """Parse one label of a host name (RFC 1123); it is also the name of the container and of the VM in DNS."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("a host name of 1 to 63 characters from a-z, 0-9 and - is needed (no - at the ends)")
    return value


def sha256(value: object) -> str:
    """Parse a SHA-256 as hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("64 hexadecimal digits are needed (0-9, a-f)")
    return value


def user_name(value: object) -> str:
    """Parse a login name."""
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise ValueError("a login name of a-z, 0-9, _ and - is needed, starting with a letter or _")
    return value


def image(value: object) -> str:
    """Parse the name of a guest image, a URL or a path."""
    return str(value) if isinstance(value, Path) else text(value)


def mapping(value: object) -> dict[str, Any]:
    """Parse what cloud-init reads: a mapping, its YAML as text, or the path of a file with it."""
    import yaml  # only tests that carry user-data pay for it

    if isinstance(value, Path):
        try:
            value = value.read_text()
        except OSError as error:
            raise Unreadable(f"the file cannot be read ({error.strerror})") from error
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, Mapping):
        raise ValueError(  # noqa: TRY004  (one error type for all parsers)
            "a mapping is needed, to which ours can be added (as a dict, as YAML text, or as a pathlib.Path), not "
            f"{'nothing' if value is None else type(value).__name__}"
        )
    return dict(value)


def packages(value: object) -> tuple[str, ...]:
    """Parse a list of package names."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("a list of package names is needed")
    return tuple(value)


def commands(value: object) -> tuple[str | list[str], ...]:
    """Parse a list of commands, each a text for the shell or a list of words."""

    def is_command(one: object) -> bool:
        return isinstance(one, str) or (isinstance(one, list | tuple) and all(isinstance(a, str) for a in one))

    if not isinstance(value, list | tuple) or not all(is_command(one) for one in value):
        raise ValueError("a list of commands is needed, each a text for the shell or a list of words")
    return tuple(one if isinstance(one, str) else list(one) for one in value)


def files(value: object) -> dict[str, bytes]:
    """Parse `{guest path: content}`; a content is text, bytes or the path of a local file."""
    if not isinstance(value, Mapping):
        raise ValueError("a mapping from guest paths to contents is needed")  # noqa: TRY004
    contents = {}
    for path, content in value.items():
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f"{path!r} is not an absolute path in the guest")
        if isinstance(content, Path):
            try:
                contents[path] = content.read_bytes()
            except OSError as error:
                raise Unreadable(f"{content} cannot be read ({error.strerror})") from error
        elif isinstance(content, str | bytes):
            contents[path] = content.encode() if isinstance(content, str) else content
        else:
            raise ValueError(f"the content of {path} is text, bytes or a pathlib.Path")  # noqa: TRY004
    return contents


def authorized_keys(value: object) -> tuple[str, ...]:
    """Parse public keys: lines as in `authorized_keys`, or the paths of files with such lines."""
    if not isinstance(value, list | tuple):
        raise ValueError("a list of public keys is needed")  # noqa: TRY004  (one error type for all parsers)
    lines = []
    for each in value:
        try:
            keys = each.read_text() if isinstance(each, Path) else text(each)
        except OSError as error:
            raise Unreadable(f"{each} cannot be read ({error.strerror})") from error
        if "PRIVATE KEY" in keys:
            raise ValueError("this is a private key; the public one is in the file whose name ends with .pub")
        lines += [line for line in keys.splitlines() if line.strip()]
    return tuple(lines)


def env(value: object) -> dict[str, str]:
    """Parse variables of the runtime image that shape a VM; the supervisor checks most of their values."""
    from pytest_virtainers.support.runtime_modules import Variable  # others do not load the runtime image's modules

    allowed = (Variable.CIDR, Variable.DISK_CACHE, Variable.OS_VARIANT, Variable.SHUTDOWN_TIMEOUT)
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise ValueError("a mapping from names of variables to texts is needed")
    if wrong := value.keys() - {*allowed}:
        raise ValueError(f"{brief(min(wrong))} is none of {', '.join(allowed)}; for others there are arguments")
    if (number := value.get(Variable.SHUTDOWN_TIMEOUT)) and not re.fullmatch("[0-9]{1,5}", number):
        raise ValueError(f"SHUTDOWN_TIMEOUT is a number of seconds, not {brief(number)}")
    if odd := [name for name, content in value.items() if not content.isprintable()]:
        raise ValueError(f"{min(odd)} has characters that cannot be printed")
    return dict(value)


def prepare(value: object) -> Callable[[VM], object]:
    """Parse a function that takes the VM."""
    from pytest_virtainers.config.prepare_digest import digest

    if not callable(value):
        raise ValueError("a function that takes the VM is needed")  # noqa: TRY004
    digest(value)  # a ValueError says why its template could not be found again
    return value


def pairs(words: Sequence[str]) -> dict[str, str]:
    """Return the mapping of words such as `NAME=VALUE`."""
    divided = [each.partition("=") for each in words]
    if wrong := [each for each, (_, sign, _) in zip(words, divided, strict=True) if not sign]:
        raise ValueError(f"{wrong[0]}: NAME=VALUE is needed")
    return {name: value for name, _, value in divided}


def guest_files(words: Sequence[str]) -> dict[str, Path]:
    """Return local files by their guest paths, of words such as `FILE:PATH`."""
    divided = [each.rpartition(":") for each in words]
    if wrong := [each for each, (file, _, path) in zip(words, divided, strict=True) if not file or not path]:
        raise ValueError(f"{wrong[0]}: FILE:PATH is needed, a file here and an absolute path in the guest")
    return {path: Path(file) for file, _, path in divided}
