"""What a benchmark has measured: rows of a table, each a median against a floor or a peer of the same run."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        what: what was measured.
        values: the values of all rounds.
        unit: the unit of the values.
        against: the floor or peer.
        floor: its values, in the same unit.
        at_most: the target, the largest allowed ratio; `None` if there is none.
        note: shown below the table.
    """

    what: str
    values: tuple[float, ...]
    unit: str
    against: str
    floor: tuple[float, ...]
    at_most: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    @property
    def floor_median(self) -> float:
        """The median of the floor's values."""
        return statistics.median(self.floor)

    @property
    def ratio(self) -> float:
        """The ratio to the floor."""
        return self.median / self.floor_median

    @property
    def is_met(self) -> bool | None:
        """Whether the ratio meets the target; `None` without one."""
        return None if self.at_most is None else self.ratio <= self.at_most


_HEADINGS = ("what", "median", "against", "its median", "ratio", "target")


def markdown(rows: Iterable[Row]) -> str:
    """Return the rows as a table, with their notes below."""
    rows = list(rows)
    lines = [_cells(_HEADINGS), _cells(["---"] * len(_HEADINGS))]
    for row in rows:
        target = "" if row.at_most is None else f"≤ {row.at_most:g}{'' if row.is_met else ' (missed)'}"
        figures = (
            _figure(row.median, row.unit),
            row.against,
            _figure(row.floor_median, row.unit),
            f"{row.ratio:.2f}",
        )
        lines.append(_cells((row.what, *figures, target)))
    return "\n".join([*lines, *(f"\n{row.what}: {row.note}" for row in rows if row.note)])


def as_json(rows: Iterable[Row]) -> str:
    """Return the rows with all their values, and the machine."""
    found = [{**asdict(row), "median": row.median, "ratio": row.ratio} for row in rows]
    return json.dumps({"machine": machine(), "rows": found}, indent=1, ensure_ascii=False)


def machine() -> dict[str, str]:
    """Return the properties of the machine on which results depend."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0].partition(": ")[2] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
