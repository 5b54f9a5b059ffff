"""The measurements of benchmarks/ still run: every row with tiny counts, its results verified, nothing judged."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("row", ["b1", "b2", "b3", "b4", "b5", "b6", "b8"])
def test_a_row_can_be_measured(row):
    """performance.md section 5; each prints its figures and who used the CPU."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--smoke", row],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = [line for line in done.stdout.splitlines() if line.startswith(f"│ {row} ")]
    assert figures, done.stdout
