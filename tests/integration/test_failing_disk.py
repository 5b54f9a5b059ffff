"""A disk that fails beneath a running process: the system calls themselves fail, whatever library makes them (R12).

A write that is acknowledged although its fsync failed would also show here that nothing waits for the disk (R7).
"""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Self

import pytest

from tests.databases import open_store
from tests.doubles.failing_syscalls import failing
from tests.doubles.privileges import need_strace

ROOT = Path(__file__).parents[2]


class Writing:
    """The other process."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.doubles.disk_process", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def told(self, word: str, name: str = "-") -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word} {name}\n")
        self.process.stdin.flush()
        return self._line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            assert self.process.wait(30) == 0 or error[0]


@pytest.mark.slow
@pytest.mark.timeout(150, func_only=True)
async def test_a_disk_that_fails_is_told_and_nothing_is_believed_that_it_did_not_take(tmp_path: Path) -> None:
    """R12, R7, R11: the database's and the keys file's; what was there stays whole, and a later try works."""
    need_strace()
    folder = tmp_path / "data"
    folder.mkdir(0o700)
    with Writing(folder) as other:
        pid = other.process.pid
        assert [other.told("entry", "a"), other.told("key")] == ["stored"] * 2
        with failing(pid, "fsync,fdatasync"):
            assert other.told("entry", "b").startswith("Unavailable: the database cannot be used at the moment")
            said = other.told("key")
            assert said.startswith("Unavailable: ")
            assert "keys.json" in said
            assert "Input/output error" in said
        with failing(pid, "rename,renameat,renameat2"):
            said = other.told("key")
            assert said.startswith("Unavailable: ")
            assert "keys.json" in said
        with failing(pid, "pwrite64", "ENOSPC"):
            assert other.told("entry", "c").startswith("Unavailable: the database cannot be used at the moment")
        assert other.told("seen") == "a"
        assert [other.told("entry", "b"), other.told("key")] == ["stored"] * 2
        assert other.told("seen") == "a b"
    with closing(sqlite3.connect(folder / "datastore.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    again = open_store(folder / "datastore.sqlite3")
    assert set(again.state.value.entries) == {"a", "b"}
    await again.close()
    assert sorted(one.name for one in folder.iterdir() if one.name.endswith(".tmp")) == []
