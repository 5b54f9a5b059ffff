"""What a large write takes of memory is given back when nothing follows it (B11a)."""

import ctypes
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from identity_server.store import writer
from identity_server.store.sql_store import SqlStore
from tests.builders import make_entry
from tests.databases import running_store

PATIENCE = 30


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "REST_SECONDS", 0.01)


def entries(name: str, count: int) -> Callable[[Any], None]:
    made = [make_entry(id=f"{name}-{number}", spiffe_id=f"/{name}/{number}") for number in range(count)]
    return lambda uow: uow.entries.add(made)


class Rests:
    """Each rest of a store's writer, and what `probe` said before and after it; `failing` makes them fail."""

    def __init__(self, store: SqlStore, failing: Exception | None = None, probe: Callable[[], int] = lambda: 0) -> None:
        self._rest, self._failing, self._probe = store._writer._rest, failing, probe
        self.before = self.after = 0
        self.ended = threading.Semaphore(0)
        self.count = 0
        store._writer._rest = self

    def __call__(self, connection: Any) -> None:
        self.count += 1
        try:
            if self._failing is not None:
                raise self._failing
            assert self._rest is not None
            self.before = self._probe()
            self._rest(connection)
            self.after = self._probe()
        finally:
            self.ended.release()


async def test_the_writer_rests_once_after_a_large_write_and_never_after_a_small_one(tmp_path: Path) -> None:
    """B9, B11a: writes that follow find everything as it was."""
    async with running_store(tmp_path / "data" / "store.sqlite3") as store:
        rests = Rests(store)
        await store.execute(entries("small", 1))
        assert rests.count == 0
        await store.execute(entries("large", writer.LARGE_WRITE))
        assert rests.ended.acquire(timeout=PATIENCE)
        await store.execute(entries("after", 1))
        assert len(store.state.value.entries) == writer.LARGE_WRITE + 2
    assert rests.count == 1


async def test_a_rest_that_fails_costs_a_connection_and_no_write(tmp_path: Path) -> None:
    """The next write is on a new one."""
    async with running_store(tmp_path / "data" / "store.sqlite3") as store:
        rests = Rests(store, sqlite3.OperationalError("disk I/O error"))
        await store.execute(entries("large", writer.LARGE_WRITE))
        assert rests.ended.acquire(timeout=PATIENCE)
        await store.execute(entries("after", 1))
        assert len(store.state.value.entries) == writer.LARGE_WRITE + 1


async def test_sqlite_keeps_no_pages_of_a_large_write_while_it_rests(tmp_path: Path) -> None:
    """As the library itself counts its memory, if it is one that can be asked."""
    try:
        used = ctypes.CDLL("libsqlite3.so.0").sqlite3_memory_used
    except (OSError, AttributeError):
        pytest.skip("SQLite is not a shared library here")
    used.restype = ctypes.c_longlong
    async with running_store(tmp_path / "data" / "store.sqlite3") as store:
        rests = Rests(store, probe=used)
        await store.execute(entries("large", 3 * writer.LARGE_WRITE))
        assert rests.ended.acquire(timeout=PATIENCE)
    if not rests.before:
        pytest.skip("the driver uses another copy of SQLite")
    assert rests.after < rests.before / 2
