"""Disposable virtual machines as pytest fixtures; only Docker or Podman is needed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_virtainers.api import launch
    from pytest_virtainers.config.argument_types import Arguments
    from pytest_virtainers.errors import (
        BootError,
        BootTimeout,
        BudgetError,
        CommandFailed,
        CommandTimeout,
        DiskFull,
        EngineError,
        EngineNotFound,
        GuestPanic,
        GuestStalled,
        ImageError,
        OutputTooLarge,
        ProvisionTimeout,
        QEMUCrashed,
        RootCommandError,
        RootCommandTimeout,
        SnapshotError,
        SpecError,
        SSHError,
        StoreError,
        TemplateError,
        TransferError,
        UnitFailed,
        UsageError,
        VirtainerError,
        VMGone,
        WaitTimeout,
    )
    from pytest_virtainers.plugin.fixtures import VMFactory
    from pytest_virtainers.vm.hotplug import Nic
    from pytest_virtainers.vm.network import Network
    from pytest_virtainers.vm.result import Result
    from pytest_virtainers.vm.vm import VM, Snapshot

__all__ = [
    "VM",
    "Arguments",
    "BootError",
    "BootTimeout",
    "BudgetError",
    "CommandFailed",
    "CommandTimeout",
    "DiskFull",
    "EngineError",
    "EngineNotFound",
    "GuestPanic",
    "GuestStalled",
    "ImageError",
    "Network",
    "Nic",
    "OutputTooLarge",
    "ProvisionTimeout",
    "QEMUCrashed",
    "Result",
    "RootCommandError",
    "RootCommandTimeout",
    "SSHError",
    "Snapshot",
    "SnapshotError",
    "SpecError",
    "StoreError",
    "TemplateError",
    "TransferError",
    "UnitFailed",
    "UsageError",
    "VMFactory",
    "VMGone",
    "VirtainerError",
    "WaitTimeout",
    "launch",
]


_ELSEWHERE = {
    "BootError": "errors",
    "BootTimeout": "errors",
    "BudgetError": "errors",
    "CommandFailed": "errors",
    "CommandTimeout": "errors",
    "DiskFull": "errors",
    "EngineError": "errors",
    "EngineNotFound": "errors",
    "GuestPanic": "errors",
    "GuestStalled": "errors",
    "ImageError": "errors",
    "OutputTooLarge": "errors",
    "ProvisionTimeout": "errors",
    "QEMUCrashed": "errors",
    "RootCommandError": "errors",
    "RootCommandTimeout": "errors",
    "SnapshotError": "errors",
    "SpecError": "errors",
    "SSHError": "errors",
    "StoreError": "errors",
    "TemplateError": "errors",
    "TransferError": "errors",
    "UnitFailed": "errors",
    "UsageError": "errors",
    "VirtainerError": "errors",
    "VMGone": "errors",
    "WaitTimeout": "errors",
    "Arguments": "config.argument_types",
    "Network": "vm.network",
    "Nic": "vm.hotplug",
    "Result": "vm.result",
    "Snapshot": "vm.vm",
    "VM": "vm.vm",
    "VMFactory": "plugin.fixtures",
    "launch": "api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: each pytest run imports this package, also one that uses no VM."""
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f"pytest_virtainers.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
