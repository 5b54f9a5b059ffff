"""The measurements of benchmarks/ still run: every row with tiny counts, its results verified, nothing judged."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("rows", ["b1", "b2", "b3", "b4 b11b", "b5", "b6", "b8", "b8all", "b10", "b12"])
def test_rows_can_be_measured(rows):
    """performance.md section 5; each prints its figures and who used the CPU."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--smoke", *rows.split()],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for row in rows.split():
        figures = [line for line in done.stdout.splitlines() if line.startswith(f"│ {row} ")]
        assert figures, done.stdout
