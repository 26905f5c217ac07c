"""Network cards that are added to a running machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_virtainers.vm.hotplug import Nic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address

    from pytest_virtainers.vm.hotplug import Hotplug
    from pytest_virtainers.vm.network import Network
    from pytest_virtainers.vm.qmp import QMP

_FIRST = "nic0"


class Nics(Mapping[str, Nic]):
    """The network cards that are added to a VM while it runs, by the names of their networks: `vm.nics`.

    `vm.nics["lab"].ip` is the address on the network `lab`. Cards without a network are not in the mapping.
    """

    def __init__(self, hotplug: Hotplug, qmp: QMP) -> None:
        self._hotplug, self._qmp = hotplug, qmp

    def __getitem__(self, network: str) -> Nic:
        """Return the card on a network; raise `KeyError` if there is none."""
        return self._by_network[network]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_network)

    def __len__(self) -> int:
        return len(self._by_network)

    def __repr__(self) -> str:
        return f"<Nics {self._by_network}>"

    @property
    def _by_network(self) -> dict[str, Nic]:
        return {nic.network.name: nic for nic in self._hotplug.nics if nic.network is not None}

    def add(self, network: Network | None = None, ip: str | int | IPv4Address = "auto") -> Nic:
        """Add a network card and set it up in the guest, now and at each boot.

        On a network the guest has its own address on the wire: ARP, multicast, IPv6, DHCP and other protocols pass
        unchanged.

        Args:
            network: the network that it is connected to; by default none, only a DHCP server without a way out.
            ip: `auto` (the engine chooses), `dhcp` (the guest asks; requires systemd-networkd there), `none`, an
                address, or its number in the network's subnet.

        Raises:
            EngineError: the engine has no such address, or no room on the network.
            VirtainerError: QEMU refuses, or the guest does not accept the card.
        """
        __tracebackhide__ = True
        return self._hotplug.add_nic(network, ip)

    def remove(self, nic: Nic) -> None:
        """Remove a network card that was added.

        Raises:
            VirtainerError: the guest keeps it.
        """
        __tracebackhide__ = True
        self._hotplug.remove_nic(nic)

    def link_down(self, nic: Nic | None = None) -> None:
        """Pull the cable out of a card that was added; by default out of the first card.

        Without the first card's cable SSH waits until it is plugged in again, except in a clone that still has its
        template's session.
        """
        __tracebackhide__ = True
        self._qmp.execute("set_link", name=nic.name if nic else _FIRST, up=False)

    def link_up(self, nic: Nic | None = None) -> None:
        """Plug the cable into a card again."""
        __tracebackhide__ = True
        self._qmp.execute("set_link", name=nic.name if nic else _FIRST, up=True)
