"""Time the phases of each VM's launch.

A context variable has the current record, so that lower layers need no argument for it. Outside `recording`, and
inside another phase, `phase` does nothing.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TOTAL = "total"


@dataclass
class Record:
    """The launch of one VM: its kind, and the seconds of its phases in order."""

    kind: str
    seconds: dict[str, float] = field(default_factory=dict)
    busy: bool = False

    def add(self, name: str, began: float) -> None:
        """Add the seconds since `began` (on `time.perf_counter`) to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


_current: ContextVar[Record | None] = ContextVar("_current", default=None)


@contextmanager
def recording(record: Record | None) -> Iterator[None]:
    """Record the phases of the block in `record`; with `None`, do not record them."""
    outer, began = _current.set(record), time.perf_counter()
    try:
        yield
    finally:
        _current.reset(outer)
        if record is not None:
            record.add(TOTAL, began)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Add the time of the block to the phase `name`."""
    record = _current.get()
    if record is None or record.busy:
        yield
        return
    record.busy, began = True, time.perf_counter()
    try:
        yield
    finally:
        record.busy = False
        record.add(name, began)


def part(name: str, seconds: float) -> None:
    """Add a part of the last phase, measured elsewhere."""
    record = _current.get()
    if record is not None:
        record.seconds[f"  {name}"] = record.seconds.get(f"  {name}", 0.0) + seconds


def table(records: Sequence[Record]) -> list[str]:
    """Return a table of medians in seconds, with a line for each phase and a column for each kind."""
    from statistics import median  # takes 2 ms, which would delay every pytest run

    kinds = list(dict.fromkeys(record.kind for record in records))
    phases = [name for name in dict.fromkeys(name for record in records for name in record.seconds) if name != TOTAL]
    counts = [f"{sum(record.kind == kind for record in records)}" for kind in kinds]
    rows = [["", *kinds], ["VMs", *counts]]
    for name in [*phases, TOTAL]:
        cells = []
        for kind in kinds:
            seen = [each.seconds[name] for each in records if each.kind == kind and name in each.seconds]
            cells.append(f"{median(seen):.3f} s" if seen else "")
        rows.append([name, *cells])
    return [f"{row[0]:<20}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]
