"""SQLite after a power cut, and after a long life: what was promised is there, and old history costs nothing (R7, R36)."""

from __future__ import annotations

import shutil
import sqlite3
import time

from tests.builders import make_entry
from tests.databases import running_store, url_of

FRAME_HEADER, WAL_HEADER = 24, 32


async def ids_and_revision(folder):
    """What a store finds there."""
    async with running_store(url_of("sqlite", folder)) as store:
        return set(store.state.value.entries), store.state.value.position.revision


async def test_a_log_cut_off_at_any_point_leaves_a_beginning_of_what_was_written(tmp_path):
    """R7: whatever of the unsynced end is missing, what is found is the state after some write, whole and in order."""
    written = [f"e{number:02}" for number in range(24)]
    states, copy = {}, tmp_path / "copy"
    async with running_store(url_of("sqlite", tmp_path)) as store:
        states[store.state.value.position.revision] = set()
        for number, name in enumerate(written, 1):
            await store.execute(lambda uow, name=name: uow.entries.add([make_entry(id=name, spiffe_id=f"/{name}")]))
            states[store.state.value.position.revision] = set(written[:number])
        shutil.copytree(tmp_path / "private", copy, ignore=shutil.ignore_patterns("*-shm", "*.lock"))
    wal = next(copy.glob("*-wal")).read_bytes()
    assert len(wal) > WAL_HEADER
    page = int.from_bytes(wal[8:12])
    frame = FRAME_HEADER + page
    cuts = {0, 1, WAL_HEADER, len(wal) - 1, len(wal)}
    cuts |= {
        WAL_HEADER + number * frame + offset for number in range(0, len(wal) // frame, 7) for offset in (0, 5, 999)
    }
    seen = set()
    for number, cut in enumerate(sorted(cuts)):
        home = tmp_path / f"cut-{number}"
        shutil.copytree(copy, home / "private")
        (home / "private").chmod(0o700)
        next((home / "private").glob("*-wal")).write_bytes(wal[:cut])
        ids, revision = await ids_and_revision(home)
        assert ids == states[revision], f"cut at {cut} of {len(wal)}"
        seen.add(len(ids))
        shutil.rmtree(home)
    assert max(seen) == len(written), "what was acknowledged and synced is all there"
    assert len(seen) > 3


async def test_half_a_million_old_events_do_not_hold_up_a_start(tmp_path):
    """R36: the state is read as it is, not replayed; ready within ten seconds of work."""
    url = url_of("sqlite", tmp_path)
    async with running_store(url) as store:
        await store.execute(lambda uow: uow.entries.add([make_entry(id="kept")]))
        revision = store.state.value.position.revision
    path = tmp_path / "private" / "datastore.sqlite3"
    count = 500_000
    with sqlite3.connect(path) as database:
        kind, subject = database.execute("SELECT kind, subject FROM log_event ORDER BY revision DESC").fetchone()
        rows = ((revision + number, 0, number, kind, subject) for number in range(1, count + 1))
        database.executemany("INSERT INTO log_event (revision, seq, token, kind, subject) VALUES (?, ?, ?, ?, ?)", rows)
        database.execute("UPDATE log_head SET revision = ?, token = ?", (revision + count, count))
    database.close()
    begin = time.process_time()
    async with running_store(url) as store:
        took = time.process_time() - begin
        assert set(store.state.value.entries) == {"kept"}
        assert store.state.value.position.revision == revision + count
        await store.execute(lambda uow: uow.entries.add([make_entry(id="new", spiffe_id="/new")]))
        assert set(store.state.value.entries) == {"kept", "new"}
    assert took < 10, f"{took:.1f} s"
