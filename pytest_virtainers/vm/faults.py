"""Faults as test steps: each is a context manager, and over when its block is."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING

from pytest_virtainers.config import parsing
from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.vm.nics import Devices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

# Pieces that halve until none fits any more, so that little is left even where a file system keeps some back.
_FILL = """
set -u
stage=$1 leave=$2
folder=${stage%/*}
# With nothing to leave, what is kept for root counts, too.
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
    """Undo a fault after the block; that it cannot be does not cover why the block has failed."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(VirtainerError):
            undo()
        raise
    undo()


class Faults(Devices):
    """The part of the handle that makes trouble."""

    @contextlib.contextmanager
    def fill_disk(self, path: str = "/", *, leave: str | int = 0) -> Iterator[None]:
        """Leave no room on the file system of a folder, not even for root, during the block.

        Args:
            path: a folder there.
            leave: MiB, or text such as `"10M"`, that stay free.

        Raises:
            VirtainerError: it cannot be filled.
        """
        __tracebackhide__ = True
        kib = parsing.size_mib(least=0)(leave) * 1024
        # Known before it is there: what has failed midway, or has lost us, is removed as well.
        stage = f"{path}/.virtainer-fill.{secrets.token_hex(4)}"
        with _undone(lambda: self._as_root('rm -rf -- "$1"', stage)):
            self._as_root(_FILL, stage, str(kib))
            yield

    @contextlib.contextmanager
    def stop_clock_sync(self) -> Iterator[None]:
        """Let nobody set the guest's clock during the block.

        Raises:
            VirtainerError: a service does not stop.
        """
        __tracebackhide__ = True
        stopped = self._as_root(_STOP_CLOCK_SYNC).decode().split()
        with _undone(lambda: self._as_root(_START, *stopped)):
            yield

    @contextlib.contextmanager
    def set_time(self, when: datetime | float) -> Iterator[None]:
        """Set the guest's clock during the block, with nobody to correct it; then it is this machine's again.

        Args:
            when: a time with a time zone, or seconds since 1970.

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
        self._as_root('date -s "@$1" >/dev/null', f"{seconds:.3f}")

    @contextlib.contextmanager
    def block_network(self) -> Iterator[None]:
        """Let nothing in or out of the guest during the block but SSH, by which this handle works.

        Raises:
            VirtainerError: the container cannot do it.
        """
        __tracebackhide__ = True
        self._control("block", "on")
        with _undone(lambda: self._control("block", "off")):
            yield

    @contextlib.contextmanager
    def slow_disk(self, *, iops: int = 0, bytes_per_second: int = 0) -> Iterator[None]:
        """Limit what the guest's disk does during the block, by QEMU's own throttling.

        Args:
            iops: requests a second, reads and writes together; 0: no limit.
            bytes_per_second: likewise.

        Raises:
            VirtainerError: QEMU refuses.
        """
        __tracebackhide__ = True
        self._throttle(iops, bytes_per_second)
        with _undone(lambda: self._throttle(0, 0)):
            yield

    def _throttle(self, iops: int, bytes_per_second: int) -> None:
        none = {"bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0}
        self.qmp("block_set_io_throttle", id=_DISK, iops=iops, bps=bytes_per_second, **none)
