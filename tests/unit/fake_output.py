"""What a container has written, as tests let it write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.engine.output import Output

if TYPE_CHECKING:
    from typing import Self


class Said(Output):
    """`said += b"more"` lets it arrive."""

    def __iadd__(self, data: bytes) -> Self:
        self.append(data)
        return self
