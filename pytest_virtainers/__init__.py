"""Disposable virtual machines as pytest fixtures; only Docker or Podman is needed."""

from pytest_virtainers.errors import (
    BootError,
    BootTimeout,
    CommandFailed,
    CommandTimeout,
    EngineError,
    EngineNotFound,
    GuestPanic,
    ImageError,
    SpecError,
    SSHError,
    StoreError,
    TransferError,
    VirtainerError,
    VMGone,
)
from pytest_virtainers.result import Result

__all__ = [
    "BootError",
    "BootTimeout",
    "CommandFailed",
    "CommandTimeout",
    "EngineError",
    "EngineNotFound",
    "GuestPanic",
    "ImageError",
    "Result",
    "SSHError",
    "SpecError",
    "StoreError",
    "TransferError",
    "VMGone",
    "VirtainerError",
]
