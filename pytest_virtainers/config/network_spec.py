"""Networks and network cards: parsers of the marker's arguments `network`, `ip` and `nics`.

`read_network` and `read_nics` convert text from the command line to values for these.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config import parsing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MODES = ("nat", "isolated", "wire", "routed", "macvlan", "existing")
_NEEDS = {"routed": ("subnet",), "macvlan": ("subnet", "parent"), "existing": ("source",)}
_OURS = ("nat", "isolated", "wire", "routed", "macvlan")
_ONLY_FOR = {"parent": ("macvlan",), "source": ("existing",), "subnet": _OURS, "ipv6": _OURS[:4]}


@dataclass(frozen=True)
class NetworkSpec:
    """A network of a run, which VMs join by its name.

    Attributes:
        mode: one of `MODES`; `None`: `nat`, or `isolated` with `internet` off, for a first card; `wire` for others.
        subnet: its IPv4 addresses; `None`: a free /24.
        ipv6: whether it has IPv6, too.
        parent: the interface of the engine's host for a macvlan.
        source: the engine's name of a network that exists.
    """

    name: str = "default"
    mode: str | None = None
    subnet: IPv4Network | None = None
    ipv6: bool = False
    parent: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        """Return a description without the name."""
        given = {"subnet": self.subnet, "ipv6": self.ipv6, "parent": self.parent, "source": self.source}
        return ", ".join([f"mode={self.mode}", *(f"{name}={each}" for name, each in given.items() if each)])

    def of_first_card(self, *, internet: bool) -> NetworkSpec:
        """Return it with the mode that it has as the network of a first card."""
        return replace(self, mode=self.mode or ("nat" if internet else "isolated"))

    def of_more_cards(self) -> NetworkSpec:
        """Return it with the mode that it has as the network of a further card."""
        return replace(self, mode=self.mode or "wire")


DEFAULT = NetworkSpec()


class FieldError(ValueError):
    """A key of a network or a card is unknown, or its value is not allowed.

    Attributes:
        key: the key.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class NicSpec:
    """A further network card.

    Attributes:
        network: what it is connected to.
        ip: `auto` (the engine's choice), `dhcp` (the guest asks), `none`, an address, or its number in the subnet.
    """

    network: NetworkSpec
    ip: str | int | IPv4Address = "auto"


def network(value: object) -> NetworkSpec:
    """Parse a name, or a mapping with a `name` and other fields of a `NetworkSpec`."""
    if isinstance(value, str):
        return NetworkSpec(parsing.host_name(value))
    given = _checked(
        value,
        {
            "name": parsing.host_name,
            "mode": parsing.choice(*MODES),
            "subnet": _subnet,
            "ipv6": parsing.switch,
            "parent": parsing.text,
            "source": parsing.text,
        },
        "a network",
    )
    if "name" not in given:
        raise ValueError("a network needs a name, by which VMs meet on it")
    found = NetworkSpec(**given)
    for needed in _NEEDS.get(found.mode or "", ()):
        if needed not in given:
            raise ValueError(f"mode {found.mode} needs {needed}")
    for name, modes in _ONLY_FOR.items():
        if name in given and (found.mode or "nat") not in modes:
            raise ValueError(f"{name} is for mode {' or '.join(modes)}")
    return found


def nics(value: object) -> tuple[NicSpec, ...]:
    """Parse a list of networks, or of mappings with a `network` and an `ip`."""
    if not isinstance(value, list | tuple):
        raise ValueError("a list of networks is needed")  # noqa: TRY004  (one error type for all parsers)
    cards = tuple(_nic(each) for each in value)
    names = [card.network.name for card in cards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"a VM has one card on a network: {', '.join(twice)} is there twice")
    return cards


def _nic(value: object) -> NicSpec:
    if not isinstance(value, Mapping) or "network" not in value:
        return NicSpec(network(value))
    return NicSpec(**_checked(value, {"network": network, "ip": _card_address}, "a card"))


def _checked(value: object, parsers: Mapping[str, Callable[[Any], Any]], what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is a name, or a mapping with {', '.join(parsers)}")  # noqa: TRY004
    checked = {}
    for key, each in value.items():
        if key not in parsers:
            near = difflib.get_close_matches(str(key), parsers, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise FieldError(str(key), f"{what} has no {key!r}; {hint}allowed are {', '.join(parsers)}")
        try:
            checked[key] = parsers[key](each)
        except ValueError as error:
            raise FieldError(str(key), f"{key}={each!r}: {error}") from None
    return checked


def address(value: object) -> int | IPv4Address:
    """Parse an IPv4 address, or its number in the network's subnet (2 is the first that may be free)."""
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value) else value
    if isinstance(number, int) and not isinstance(number, bool) and number >= 2:  # noqa: PLR2004  (1 is the host's)
        return number
    try:
        return IPv4Address(value) if isinstance(value, str) else IPv4Address("")
    except ValueError:
        raise ValueError("an IPv4 address is needed, or its number in the network's subnet, from 2 on") from None


def _card_address(value: object) -> str | int | IPv4Address:
    if value in ("auto", "dhcp", "none"):
        return str(value)
    try:
        return address(value)
    except ValueError as error:
        raise ValueError(f"auto, dhcp or none; or else {error}") from None


def _subnet(value: object) -> IPv4Network:
    try:
        return IPv4Network(value) if isinstance(value, str) else IPv4Network("")
    except ValueError as error:
        raise ValueError(f"an IPv4 network is needed, such as 10.50.0.0/24 ({error})") from None


def read_network(words: str) -> dict[str, str]:
    """Return the mapping for `name=lab,mode=isolated,…`, or for the name of a network that the engine has.

    Raises:
        ValueError: it is neither.
    """
    first, *others = words.split(",")
    if "=" in first or not first:
        return parsing.pairs([first, *others])
    label = re.sub("[^a-z0-9]+", "-", first.lower()).strip("-")
    return {"name": label, "mode": "existing", "source": first, **parsing.pairs(others)}


def read_nics(words: Sequence[str]) -> list[dict[str, object]]:
    """Return the mapping for each card; it is written as a network, which may have an `ip=…`. Raises `ValueError`."""
    cards: list[dict[str, object]] = []
    for each in words:
        network = read_network(each)
        ip = {"ip": network.pop("ip")} if "ip" in network else {}
        cards.append({"network": network, **ip})
    return cards
