"""Modules of the runtime image that the plugin uses as well, so that each fact and each parser has one place."""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any

from pytest_virtainers.support.paths import build_contexts

__all__ = ["Variable", "load", "protocol"]


@functools.cache
def load(name: str) -> Any:
    """Load a module of `images/runtime/virtainer` that imports nothing but the standard library."""
    spec = importlib.util.spec_from_file_location(
        f"_virtainers_{name}", build_contexts() / "runtime" / "virtainer" / f"{name}.py"
    )
    assert spec is not None  # noqa: S101  (for the type checker: it is a .py file)
    assert spec.loader is not None  # noqa: S101
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


if TYPE_CHECKING:
    from virtainer import protocol
    from virtainer.protocol import Variable
else:
    protocol = load("protocol")
    Variable = protocol.Variable
