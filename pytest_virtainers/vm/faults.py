"""Faults inside one guest. Each is a context manager, which undoes the fault at the end of its block."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING

from pytest_virtainers.config import parsing
from pytest_virtainers.errors import VirtainerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from pytest_virtainers.vm.machine import Machine

# Pieces of half the size each time, until none fits: little is left even where a file system reserves space.
_FILL = """
set -u
stage=$1 leave=$2
folder=${stage%/*}
# If nothing is to stay free, what is reserved for root counts, too.
if [ "$leave" = 0 ]; then blocks=%f; else blocks=%a; fi
mkdir -m 700 "$stage" || exit
free=$(($(stat -f -c "$blocks * %S" "$folder") / 1024 - leave))
piece=$free number=0
while [ "$piece" -ge 4 ]; do
    if [ "$piece" -le "$free" ] && fallocate -l "${piece}K" "$stage/$number" 2>/dev/null; then
        number=$((number + 1))
    else
        rm -f "$stage/$number"
        piece=$((piece / 2))
    fi
    free=$(($(stat -f -c "$blocks * %S" "$folder") / 1024 - leave))
done
"""
_STOP_CLOCK_SYNC = """
for each in systemd-timesyncd chronyd chrony ntpd ntpsec ntp openntpd; do
    if systemctl is-active --quiet "$each" 2>/dev/null; then systemctl stop "$each" && echo "$each"; fi
done
"""
_START = 'for each; do systemctl start "$each"; done'


# The part of a virtio disk that has the blocks (images/runtime/virtainer/machine.py).
_DISK = "/machine/peripheral/disk0/virtio-backend"


@contextlib.contextmanager
def _undone(undo: Callable[[], object]) -> Iterator[None]:
    """Undo a fault after the block; a failure to do so does not hide an exception of the block."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(VirtainerError):
            undo()
        raise
    undo()


class Faults:
    """Faults of a VM's disk, clock and network, each for the duration of a block: `vm.faults`.

    Faults between VMs are methods of `vm.network`.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @contextlib.contextmanager
    def fill_disk(self, path: str = "/", *, leave: str | int = 0) -> Iterator[None]:
        """Fill the file system of a folder, so that not even root can write there, for the duration of the block.

        Args:
            path: a folder on the file system.
            leave: MiB that stay free, or text such as `"10M"`.

        Raises:
            VirtainerError: it cannot be filled.

        Example:
            `with vm.faults.fill_disk("/var/lib/mysql", leave="1M"): ...`
        """
        __tracebackhide__ = True
        kib = parsing.size_mib(least=0)(leave) * 1024
        # Its name is known first, so that it is also removed after a failure halfway, or a lost connection.
        stage = f"{path}/.virtainer-fill.{secrets.token_hex(4)}"
        with _undone(lambda: self._machine.run_as_root('rm -rf -- "$1"', stage)):
            self._machine.run_as_root(_FILL, stage, str(kib))
            yield

    @contextlib.contextmanager
    def stop_clock_sync(self) -> Iterator[None]:
        """Stop the services that set the guest's clock, for the duration of the block.

        Raises:
            VirtainerError: a service does not stop.
        """
        __tracebackhide__ = True
        stopped = self._machine.run_as_root(_STOP_CLOCK_SYNC).decode().split()
        with _undone(lambda: self._machine.run_as_root(_START, *stopped)):
            yield

    @contextlib.contextmanager
    def set_time(self, when: datetime | float) -> Iterator[None]:
        """Set the guest's clock for the duration of the block, with the services stopped that would correct it.

        After the block it has this machine's time again.

        Args:
            when: a `datetime` with a time zone, or seconds since 1970.

        Raises:
            VirtainerError: the clock cannot be set.
        """
        __tracebackhide__ = True
        seconds = when if isinstance(when, int | float) else when.timestamp()
        with self.stop_clock_sync():
            self._set_clock(seconds)
            with _undone(lambda: self._set_clock(time.time())):
                yield

    def _set_clock(self, seconds: float) -> None:
        self._machine.run_as_root('date -s "@$1" >/dev/null', f"{seconds:.3f}")

    @contextlib.contextmanager
    def block_network(self) -> Iterator[None]:
        """Block the guest's network, except this VM's SSH, for the duration of the block.

        Raises:
            VirtainerError: the container cannot block it.
        """
        __tracebackhide__ = True
        self._machine.control("block", "on")
        with _undone(lambda: self._machine.control("block", "off")):
            yield

    @contextlib.contextmanager
    def slow_disk(self, *, iops: int = 0, bytes_per_second: int = 0) -> Iterator[None]:
        """Throttle the guest's disk in QEMU, for the duration of the block.

        Args:
            iops: requests a second, reads and writes together; 0: no limit.
            bytes_per_second: bytes a second, reads and writes together; 0: no limit.

        Raises:
            VirtainerError: QEMU refuses.
        """
        __tracebackhide__ = True
        self._throttle(iops, bytes_per_second)
        with _undone(lambda: self._throttle(0, 0)):
            yield

    def _throttle(self, iops: int, bytes_per_second: int) -> None:
        none = {"bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0}
        self._machine.qmp.execute("block_set_io_throttle", id=_DISK, iops=iops, bps=bytes_per_second, **none)
