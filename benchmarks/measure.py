"""What a process used, and how a figure is shown."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure; `low` and `high` are the range of the repeats."""

    row: str
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def show(rows: list[Row]) -> None:
    """A table of the figures."""
    table = Table(title=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for heading in ("row", "what", "median", "range"):
        table.add_column(heading)
    for row in rows:
        spread = f"{row.low:.3g} - {row.high:.3g}" if row.low is not None and row.high is not None else ""
        table.add_row(row.row, row.what, f"{row.value:,.3f} {row.unit}" if row.value < 10 else f"{row.value:,.0f} {row.unit}", spread)  # fmt: skip
    Console().print(table)
