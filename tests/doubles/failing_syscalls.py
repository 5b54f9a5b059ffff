"""A process whose system calls fail as a broken disk makes them fail: strace puts the error in their place."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS = 30


def _tracers(pid: int) -> set[int]:
    """Who traces each of a process's threads; 0 for nobody."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.add(int((task / "status").read_text().partition("TracerPid:")[2].split()[0]))
    return found


def _until(pid: int, wanted: set[int]) -> None:
    deadline = time.monotonic() + SECONDS
    while _tracers(pid) != wanted:
        assert time.monotonic() < deadline, f"process {pid} is traced by {_tracers(pid)}, not by {wanted}"
        time.sleep(0.01)


@contextlib.contextmanager
def failing(pid: int, calls: str, error: str = "EIO") -> Iterator[None]:
    """While it lasts, each of these system calls of the process does nothing and fails."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}", "-p", str(pid)],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _until(pid, {tracer.pid})
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go of the process, and ends
        tracer.wait(SECONDS)
        _until(pid, {0})
