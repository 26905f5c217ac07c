"""`virtainers.toml`: VMs and networks that the tests of a folder share."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config.network_spec import FieldError, NetworkSpec, network
from pytest_virtainers.config.spec import check
from pytest_virtainers.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE = "virtainers.toml"
_TABLES = ("defaults", "machines", "networks")
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')\s*=")


@dataclass(frozen=True)
class Topology:
    """The content of a file, checked.

    Attributes:
        path: the file.
        machines: the marker's arguments for each VM, by its name.
        defaults: the marker's arguments for VMs that it does not name.
        networks: the networks that it describes, by their names.
    """

    path: Path
    machines: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    networks: Mapping[str, NetworkSpec]

    def machine(self, name: str) -> Mapping[str, Any]:
        """Return the arguments for a VM, which the file need not name."""
        return self.machines.get(name, self.defaults)

    def named(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return a marker's arguments with the file's networks where they are only named."""
        found = dict(arguments)
        if "network" in found:
            found["network"] = self._described(found["network"])
        if "nics" in found:
            found["nics"] = tuple(replace(nic, network=self._described(nic.network)) for nic in found["nics"])
        return found

    def _described(self, network: NetworkSpec) -> NetworkSpec:
        return self.networks.get(network.name, network) if network == NetworkSpec(network.name) else network


def near(folder: Path, root: Path) -> Topology | None:
    """Return the content of the file in a folder, or in the nearest one above it up to `root`, or `None`.

    Raises:
        SpecError: something in it is not allowed; the message has the line.
    """
    for each in (folder, *folder.parents):
        if (each / FILE).is_file():
            return read(each / FILE)
        if each == root:
            break
    return None


@functools.cache
def read(path: Path) -> Topology:
    """Return the content of a file; raises `SpecError`."""
    import tomllib  # only folders with such a file pay for it

    try:
        text = path.read_text()
        tables = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: {error}") from None
    lines = _lines(text)

    def where(*keys: str) -> str:
        known = next((lines[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in lines), 1)
        return f"{path}:{known}: {'.'.join(keys)}"

    def table(*keys: str) -> dict[str, Any]:
        found: Any = tables
        for key in keys:
            found = found.get(key, {})
        if not isinstance(found, dict):
            raise SpecError(f"{where(*keys)}: a table is needed")
        return found

    for key in tables:
        if key not in _TABLES:
            raise SpecError(f"{where(key)}: unknown; allowed are {', '.join(_TABLES)}")
    networks = {name: {"name": name, **table("networks", name)} for name in table("networks")}
    described: dict[str, NetworkSpec] = {}
    for name, given in networks.items():
        try:
            described[name] = network(given)
        except ValueError as error:
            keys = [error.key] if isinstance(error, FieldError) else []
            raise SpecError(f"{where('networks', name, *keys)}: {error}") from None

    def arguments(*keys: str) -> dict[str, Any]:
        checked: dict[str, Any] = {}
        for key, value in table(*keys).items():
            checked |= check({key: _described(key, value, networks)}, where(*keys, key), path.parent)
        return checked

    defaults = arguments("defaults")
    machines = {
        name: {**defaults, **arguments("machines", name), **check({"name": name}, where("machines", name))}
        for name in table("machines")
    }
    if not machines:
        raise SpecError(f"{path}: it describes no machines. Add a table such as [machines.web]")
    return Topology(path, machines, defaults, described)


def _described(key: str, value: object, networks: Mapping[str, Mapping[str, Any]]) -> object:
    """Return a value with the descriptions of networks that it names."""

    def described(one: object) -> object:
        if isinstance(one, dict) and "network" in one:
            return {**one, "network": described(one["network"])}
        return networks.get(one, one) if isinstance(one, str) else one

    if key == "network":
        return described(value)
    return [described(each) for each in value] if key == "nics" and isinstance(value, list) else value


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of each table and key, as far as simple patterns find them; tomllib has no lines."""
    found: dict[tuple[str, ...], int] = {}
    within: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            within = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            for end in range(1, len(within) + 1):
                found.setdefault(within[:end], number)
        elif key := _KEY.match(line):
            found.setdefault((*within, key[1].strip("\"'")), number)
    return found
