"""What a process used, what a machine can do, and how a figure is shown."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.table import Table

from tests.doubles.cpu_time import cpu_seconds

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Row:
    """One figure; `low` and `high` are the range of the repeats. A bar is what it must reach, or must not exceed."""

    row: str
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    target: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most


def median(row: str, what: str, values: Sequence[float], unit: str, **more: object) -> Row:
    """The row of several repeats."""
    return Row(row, what, statistics.median(values), unit, min(values), max(values), **more)


@dataclass
class Cpu:
    """CPU seconds of a process and its children by who used them: `main` is the thread with the event loop."""

    total: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def __sub__(self, other: Cpu) -> Cpu:
        parts = {name: used - other.parts.get(name, 0.0) for name, used in self.parts.items()}
        return Cpu(self.total - other.total, parts)

    def split(self) -> str:
        """The shares in percent, the largest first."""
        whole = sum(self.parts.values()) or 1.0
        ordered = sorted(self.parts.items(), key=lambda one: -one[1])
        return ", ".join(f"{name} {used / whole:.0%}" for name, used in ordered if used / whole >= 0.01)


def cpu_of(pid: int) -> Cpu:
    """What a process used so far, thread by thread (nanoseconds of the scheduler), with its children.

    Threads that have ended count too, in the kernel's ticks of 10 ms: a server lets idle ones go.
    """
    cpu = Cpu()
    whole = cpu_seconds(pid)
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            used = int((task / "schedstat").read_text().split()[0]) / 1e9
            name = (task / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kind = "main" if int(task.name) == pid else "gRPC threads" if _grpc(name) else "other threads"
        cpu.parts[kind] = cpu.parts.get(kind, 0.0) + used
    cpu.parts["ended threads"] = max(0.0, whole - sum(cpu.parts.values()))
    for child in children(pid):
        cpu.parts["worker processes"] = cpu.parts.get("worker processes", 0.0) + cpu_of(child).total
    cpu.total = sum(cpu.parts.values())
    return cpu


def _grpc(name: str) -> bool:
    return name.startswith(("grpc", "event_engine", "timer_manager", "lifeguard", "wakeup", "resolver"))


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def resident_mb(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process and its children; `VmHWM` is the most it ever had."""
    own = 0.0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            own = int(line.split()[1]) / 1024
    return own + sum(resident_mb(child, what) for child in children(pid))


def floor() -> Row:
    """What OpenSSL alone takes for one X.509-SVID on this machine now: verify the request, sign the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    public, how = key.public_key(), ec.ECDSA(hashes.SHA256())
    data = bytes(400)
    signature = key.sign(data, how)
    times = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(200):
            key.sign(data, how)
            public.verify(signature, data, how)
        times.append((time.thread_time() - start) / 200 * 1e6)
    return median("floor", "P-256: one signature verified and one made (CPU)", times, "µs")


def show(rows: list[Row]) -> None:
    """A table of the figures; of two targets the ratio of the first to the second."""
    table = Table(title=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for heading in ("row", "target", "what", "median", "range", "bar", ""):
        table.add_column(heading)
    for row in rows:
        spread = f"{row.low:.3g} - {row.high:.3g}" if row.low is not None and row.high is not None else ""
        bar = f">= {row.at_least:,g}" if row.at_least is not None else f"<= {row.at_most:,g}" if row.at_most else ""
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        table.add_row(row.row, row.target, row.what, f"{_number(row.value)} {row.unit}", spread, bar, verdict)
        if row.note:
            table.add_row("", "", f"  [dim]{row.note}[/dim]", "", "", "", "")
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


def _number(value: float) -> str:
    return f"{value:,.3f}" if value < 10 else f"{value:,.0f}"
