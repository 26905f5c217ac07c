"""The handle of one running VM: what tests write against. Its parts are the modules beside this one."""

from __future__ import annotations

from pytest_virtainers.vm.access import Tools
from pytest_virtainers.vm.faults import Faults
from pytest_virtainers.vm.files import Files
from pytest_virtainers.vm.screen import Viewer
from pytest_virtainers.vm.snapshots import Saving, Snapshot
from pytest_virtainers.vm.tunnels import Tunnels

__all__ = ["VM", "Snapshot"]


class VM(Faults, Files, Tunnels, Tools, Viewer, Saving):
    """A virtual machine that is up, with SSH connected."""
