"""Disposable virtual machines as pytest fixtures; only Docker or Podman is needed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_virtainers.arguments import Arguments
    from pytest_virtainers.errors import (
        BootError,
        BootTimeout,
        BudgetError,
        CommandFailed,
        CommandTimeout,
        EngineError,
        EngineNotFound,
        GuestPanic,
        GuestStalled,
        ImageError,
        ProvisionTimeout,
        QEMUCrashed,
        SpecError,
        SSHError,
        StoreError,
        TemplateError,
        TransferError,
        UnitFailed,
        VirtainerError,
        VMGone,
        WaitTimeout,
    )
    from pytest_virtainers.fixtures import VMFactory
    from pytest_virtainers.handle.devices import Nic
    from pytest_virtainers.handle.network import Network
    from pytest_virtainers.handle.vm import VM, Snapshot
    from pytest_virtainers.result import Result
    from pytest_virtainers.standalone import launch

__all__ = [
    "VM",
    "Arguments",
    "BootError",
    "BootTimeout",
    "BudgetError",
    "CommandFailed",
    "CommandTimeout",
    "EngineError",
    "EngineNotFound",
    "GuestPanic",
    "GuestStalled",
    "ImageError",
    "Network",
    "Nic",
    "ProvisionTimeout",
    "QEMUCrashed",
    "Result",
    "SSHError",
    "Snapshot",
    "SpecError",
    "StoreError",
    "TemplateError",
    "TransferError",
    "UnitFailed",
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
    "EngineError": "errors",
    "EngineNotFound": "errors",
    "GuestPanic": "errors",
    "GuestStalled": "errors",
    "ImageError": "errors",
    "ProvisionTimeout": "errors",
    "QEMUCrashed": "errors",
    "SpecError": "errors",
    "SSHError": "errors",
    "StoreError": "errors",
    "TemplateError": "errors",
    "TransferError": "errors",
    "UnitFailed": "errors",
    "VirtainerError": "errors",
    "VMGone": "errors",
    "WaitTimeout": "errors",
    "Arguments": "arguments",
    "Network": "handle.network",
    "Nic": "handle.devices",
    "Result": "result",
    "Snapshot": "handle.vm",
    "VM": "handle.vm",
    "VMFactory": "fixtures",
    "launch": "standalone",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: each pytest run imports this package, also one that uses no VM."""
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f"pytest_virtainers.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
