"""kill -9, a full disk, a foreign lock, a lost database: nothing acknowledged is lost, nothing half is stored."""

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from identity_server.domain.history import HistoryChange
from identity_server.store import sql_store, writer
from spiffe_core.errors import Unavailable
from tests.builders import make_entry
from tests.databases import open_store, running_store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "datastore.sqlite3"


def add(*numbers: int):
    entries = [make_entry(id=str(number), spiffe_id=f"/{number}") for number in numbers]
    return lambda uow: uow.entries.add(entries)


@pytest.mark.slow
async def test_kill_9_loses_nothing_acknowledged_and_keeps_batches_whole(path: Path) -> None:
    """R1, R2: four callers of one entry and one of 500, killed at different moments, always restarted on the same file."""
    acknowledged: set[str] = set()
    revision = 0
    for round_ in range(4):
        command = [sys.executable, "-m", "tests.doubles.store_process", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(1 + round_ * 9):
                acknowledged.add(process.stdout.readline().strip())
            process.send_signal(signal.SIGKILL)
            acknowledged.update(line.strip() for line in process.stdout if line.endswith("\n"))
        store = open_store(path)
        state = store.state.value
        await store.close()
        ids = set(state.entries)
        batches: dict[str, int] = {}
        for entry_id in ids:
            if entry_id.startswith("b-"):
                batches[entry_id.split("-")[1]] = batches.get(entry_id.split("-")[1], 0) + 1
        assert set(batches.values()) <= {500}
        for line in acknowledged:
            kind, _, name = line.partition(" ")
            assert name in (ids if kind == "one" else batches), line
        assert state.position.revision > revision
        revision = state.position.revision
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond one page: every COMMIT fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_unavailable_and_recovers(path: Path) -> None:
    """R11, R24"""
    async with running_store(path) as store:
        await store.execute(add(1))
        before = store.state.value
        with full_disk():
            results = await asyncio.gather(*(store.execute(add(n)) for n in range(2, 22)), return_exceptions=True)
            assert {type(one) for one in results} == {Unavailable}
            assert await store.read(lambda uow: uow.entries.get("1")) is not None, "reading goes on"
            assert store.state.value is before
        await store.execute(add(2))
        assert set(store.state.value.entries) == {"1", "2"}
        assert store.state.value.position.revision == before.position.revision + 1, "no revision was lost or used twice"
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@contextmanager
def foreign_lock(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as tool:
        tool.execute("BEGIN IMMEDIATE")
        yield tool


async def test_a_short_foreign_lock_only_delays(path: Path) -> None:
    """R29: retried with jitter, nothing lost, nothing twice."""
    async with running_store(path, busy_milliseconds=10) as store:
        with foreign_lock(path) as tool:
            waiting = [asyncio.ensure_future(store.execute(add(number))) for number in range(10)]
            done, _ = await asyncio.wait(waiting, timeout=0.2)
            assert not done
            tool.execute("ROLLBACK")
            await asyncio.gather(*waiting)
        assert set(store.state.value.entries) == {str(number) for number in range(10)}


async def test_a_lasting_foreign_lock_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R24, R29: bounded."""
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.1)
    async with running_store(path, busy_milliseconds=10) as store:
        with foreign_lock(path):
            with pytest.raises(Unavailable):
                await store.execute(add(1))
        await store.execute(add(1))
        assert set(store.state.value.entries) == {"1"}


async def test_too_many_waiting_writes_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 5)
    async with running_store(path, busy_milliseconds=10) as store:
        with foreign_lock(path):
            results = [asyncio.ensure_future(store.execute(add(number))) for number in range(50)]
            await asyncio.sleep(0.05)
            refused = [one for one in results if one.done() and isinstance(one.exception(), Unavailable)]
            assert refused
        stored = await asyncio.gather(*results, return_exceptions=True)
        assert len(store.state.value.entries) == stored.count(None) == 50 - len(refused)


async def test_a_follower_that_cannot_read_does_not_hold_up_writers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R24: the change is stored; its caller is answered although the state cannot show it yet. Then it catches up."""
    monkeypatch.setattr(sql_store, "CAUGHT_UP_SECONDS", 0.05)
    async with running_store(path) as store:
        await store.execute(add(1))
        encode, store._follower._encode = store._follower._encode, lambda _entry: 1 / 0
        await store.execute(add(2))
        assert set(store.state.value.entries) == {"1"}
        assert await store.read(lambda uow: uow.entries.get("2")) is not None
        while not store.trouble:
            await asyncio.sleep(0.01)
        store._follower._encode = encode
        version = store.state.version
        await store.state.changed(version)
        assert set(store.state.value.entries) == {"1", "2"}
        while store.trouble:
            await asyncio.sleep(0.01)


async def test_a_restored_backup_is_reported_and_begins_a_new_history(path: Path) -> None:
    """eventlog 2.6: the owner is told on the loop, so it can raise the alarm and publish its roots again."""
    async with running_store(path) as store:
        told: asyncio.Queue[HistoryChange] = asyncio.Queue()
        store.on_history_change = told.put_nowait
        await store.execute(add(1))
        with closing(sqlite3.connect(":memory:")) as backup:
            with closing(sqlite3.connect(path)) as live:
                live.backup(backup)
            await store.execute(add(2))
            known = store.state.value.position
            with closing(sqlite3.connect(path)) as live:
                backup.backup(live)
        change = await told.get()
        assert change.proven
        assert change.before == known
        while store.state.value.position.epoch == known.epoch:
            await store.state.changed(store.state.version)
        assert set(store.state.value.entries) == {"1"}
        await store.execute(add(3))
        assert set(store.state.value.entries) == {"1", "3"}


async def test_pruning_keeps_the_newest_revisions_and_followers_go_on(path: Path) -> None:
    async with running_store(path) as store:
        for number in range(10):
            await store.execute(add(number))
        head = store.state.value.position.revision
        assert await store.prune_log(keep_revisions=3) == head - 2
        assert await store.prune_log(keep_revisions=0) == head, "the newest revision stays"
        assert store.state.value.position.revision == head, "pruning is no revision"
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT min(revision), max(revision) FROM log_event").fetchall() == [(head, head)]
        await store.execute(add(99))
        assert store.state.value.position.revision == head + 1
        assert "99" in store.state.value.entries


async def test_revisions_are_pruned_by_age_too(path: Path) -> None:
    from tests.doubles.clock import FakeClock

    clock = FakeClock()
    async with running_store(path, clock=clock) as store:
        await store.execute(add(1))
        assert await store.prune_log(keep_seconds=60) == 1
        old = store.state.value.position.revision
        clock.advance(61)
        await store.execute(add(2))
        await store.execute(add(3))
        assert await store.prune_log(keep_seconds=60) == old


async def test_reads_are_bounded_in_time_and_number_and_nobody_runs_one_for_a_caller_that_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R24: a database that does not answer holds up neither callers nor memory."""
    monkeypatch.setattr(sql_store, "READ_SECONDS", 0.3)
    monkeypatch.setattr(sql_store, "READ_THREADS", 1)
    monkeypatch.setattr(sql_store, "MAX_READING", 2)
    async with running_store(path) as store:
        answer, ran = threading.Event(), []

        def stuck(_uow) -> None:
            ran.append("stuck")
            answer.wait(20)

        waiting = [asyncio.ensure_future(store.read(one)) for one in (stuck, lambda _uow: ran.append("late"))]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="too many reads"):
            await store.read(lambda _uow: ran.append("refused"))
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in outcomes] == [Unavailable, Unavailable]
        answer.set()
        assert await store.read(lambda _uow: "again") == "again"
        assert ran == ["stuck"]
