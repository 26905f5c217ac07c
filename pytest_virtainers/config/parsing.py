"""How people write settings, and what they become.

Each parser takes what a person wrote (text from an option, or a Python value from a marker), returns the value
in its unit, and raises `ValueError` with the allowed forms.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?)(i?B)?", re.ASCII | re.IGNORECASE)
_MIB_PER_UNIT = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 * 1024}
_MOST_MIB = 2**30  # 1 PiB
_MOST_SECONDS = 10.0**9  # what operating systems wait for
_RATE = re.compile(r"(?P<number>\d+)\s*((?P<unit>[kmg]?)bit(/s)?)?", re.IGNORECASE)
_BITS_PER_UNIT = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SHA256 = re.compile("[0-9a-f]{64}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


def size_mib(least: int) -> Callable[[object], int]:
    """Make a parser of sizes in MiB, at least `least` MiB: `1024`, `"1024M"`, `"2G"`, `"2GiB"`."""

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
    """Parse a size, or a share of a whole such as `80%`; give a function from the whole to the size, both in MiB."""
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
    """Make a parser that takes one of the given words."""

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
    """Parse one label of a host name (RFC 1123): it also names the container and the machine in DNS."""
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
