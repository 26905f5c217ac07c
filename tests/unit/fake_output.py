"""The output of a container, written by tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.engine.output import Output

if TYPE_CHECKING:
    from typing import Self


class FakeOutput(Output):
    """`stdout += b"more"` makes more arrive."""

    def __iadd__(self, data: bytes) -> Self:
        self.append(data)
        return self
