"""Disks that are added to a running machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.config import parsing

if TYPE_CHECKING:
    from pytest_virtainers.vm.hotplug import Disk, Hotplug
    from pytest_virtainers.vm.waits import Waits


class Disks:
    """Disks of a VM that are added and removed while it runs: `vm.disks`."""

    def __init__(self, hotplug: Hotplug, waits: Waits) -> None:
        self._hotplug, self._waits = hotplug, waits

    def add(self, size: str | int, *, timeout: float = 30.0) -> Disk:
        """Add an empty disk and wait until the guest has its device.

        Args:
            size: MiB, or text such as `"1G"`; it takes up space only as it fills.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            UsageError: `size` is not a size.
            VirtainerError: QEMU refuses, or its host has no space.
            WaitTimeout: the guest does not show the device.

        Example:
            `disk = vm.disks.add("1G"); vm.run(["mkfs.ext4", disk.path], sudo=True)`
        """
        __tracebackhide__ = True
        disk = self._hotplug.add_disk(parsing.size_mib(least=1)(size))
        self._waits.wait_for_file(disk.path, timeout=timeout)
        return disk

    def remove(self, disk: Disk) -> None:
        """Remove a disk that was added, with its data.

        Raises:
            VirtainerError: the guest keeps it.
        """
        __tracebackhide__ = True
        self._hotplug.remove_disk(disk)
