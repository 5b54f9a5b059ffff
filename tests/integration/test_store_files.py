"""The SQLite file: private, ours, one process at a time, and of a schema we know."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from identity_server.store import schema
from identity_server.store.connecting import open_database
from identity_server.store.migrating import MIGRATIONS, VERSION_TABLE, upgrade
from identity_server.store.sqlite_database import CHECKPOINT_PAGES, WRITER_CACHE_KIB
from spiffe_core.errors import ConfigError, Conflict, CorruptState, PreconditionFailed
from tests.builders import make_entry
from tests.databases import open_store, running_store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "datastore.sqlite3"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_file_and_directory_are_private_from_the_first_byte(path: Path) -> None:
    before = os.umask(0)
    try:
        async with running_store(path) as store:
            await store.execute(lambda uow: uow.entries.add([make_entry()]))
            assert mode(path.parent) == 0o700
            assert {one.name: mode(one) for one in path.parent.iterdir()} == {
                path.name + suffix: 0o600 for suffix in ("", "-wal", "-shm", ".lock")
            }
    finally:
        os.umask(before)


async def test_a_second_process_is_refused_with_path_and_pid(path: Path) -> None:
    command = [sys.executable, "-m", "tests.doubles.store_process", str(path), "--hold"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            with pytest.raises(Conflict) as refusal:
                open_store(path)
            assert str(path) in refusal.value.public
            assert f"process {holder.pid}" in refusal.value.public
        finally:
            holder.kill()
    await open_store(path).close()


async def test_a_second_store_in_this_process_is_refused_too(path: Path) -> None:
    store = open_store(path)
    with pytest.raises(Conflict, match=f"process {os.getpid()}"):
        open_store(path)
    await store.close()
    await open_store(path).close()


def prepared(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(0o600)


def symlink(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.touch(0o600)
    path.unlink()
    path.symlink_to(target)


def hard_link(path: Path) -> None:
    path.with_name("second").hardlink_to(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (symlink, CorruptState, "symbolic link"),
        (hard_link, CorruptState, "second name"),
        (directory, CorruptState, "not a regular file"),
        (lambda path: path.chmod(0o644), CorruptState, "chmod 0600"),
        (lambda path: path.write_text("-----BEGIN PRIVATE KEY-----"), CorruptState, "not a SQLite database"),
        (lambda path: path.parent.chmod(0o777), ConfigError, "0777"),
        (lambda path: path.with_name(path.name + ".lock").symlink_to("/etc/passwd"), ConfigError, "cannot be used"),
        (lambda path: path.with_name(path.name + "-wal").symlink_to("/etc/passwd"), CorruptState, "symbolic link"),
    ],
)
def test_what_is_not_our_private_file_is_refused_by_name(path: Path, spoil, error, words: str) -> None:
    """R13"""
    prepared(path)
    spoil(path)
    with pytest.raises(error, match=words) as refusal:
        open_store(path)
    assert str(path.parent) in refusal.value.public


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_file_of_somebody_else_is_refused(path: Path, what: str) -> None:
    """R13"""
    prepared(path)
    os.chown(path if what == "file" else path.parent, 12345, 12345)
    with pytest.raises((CorruptState, ConfigError), match="12345") as refusal:
        open_store(path)
    assert str(path.parent) in refusal.value.public


async def test_an_empty_file_becomes_a_database(path: Path) -> None:
    prepared(path)
    await open_store(path).close()
    await open_store(path).close()


def test_a_damaged_database_is_refused_and_left_alone(path: Path) -> None:
    prepared(path)
    damaged = b"SQLite format 3\x00" + os.urandom(8192)
    path.write_bytes(damaged)
    with pytest.raises(CorruptState, match="restore") as refusal:
        open_store(path)
    assert str(path) in refusal.value.public
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory",
        "sqlite:////tmp/x?timeout=1",
        "oracle://x/y",
        "://",
    ],
)
def test_a_url_that_cannot_work_is_refused_by_key(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        open_store(url)
    assert refusal.value.field == "database.url"
    assert "database.url" in refusal.value.public


def test_a_password_in_a_url_is_never_repeated() -> None:
    with pytest.raises(ConfigError) as refusal:
        open_store("postgresql://user:hunter2@db/x")
    assert "hunter2" not in str(refusal.value) + repr(refusal.value.facts)


async def test_an_unknown_newer_schema_is_refused(path: Path) -> None:
    await open_store(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        database.commit()
    with pytest.raises(PreconditionFailed, match=r"schema 9999.*newer version"):
        open_store(path)


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    prepared(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE bundles (id INTEGER)")
    with pytest.raises(CorruptState, match="not made by this program"):
        open_store(path)


def test_the_migrations_end_at_the_schema_of_the_code(path: Path) -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [schema.SCHEMA_REVISION]
    database = open_database(path)
    upgrade(database)
    with database.reader.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
    database.close()


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """The migrations of a later version: ours and one more."""
    scripts = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, scripts)
    (scripts / "versions" / "r9999_next.py").write_text(
        "from alembic import op\n"
        f"revision, down_revision, branch_labels, depends_on = '9999', '{schema.SCHEMA_REVISION}', None, None\n"
        "def upgrade():\n"
        "    op.execute('CREATE TABLE something_new (id INTEGER)')\n"
        "    op.execute('INSERT INTO something_new SELECT count(*) FROM entry')\n"
    )
    return scripts


async def test_an_older_database_is_copied_and_then_migrated(path: Path, next_version: Path) -> None:
    async with running_store(path) as store:
        await store.execute(lambda uow: uow.entries.add([make_entry()]))
    database = open_database(path)
    found = upgrade(database, target="9999", scripts=next_version)
    database.close()
    assert found == schema.SCHEMA_REVISION
    copy = path.with_name(f"datastore.sqlite3.before-{schema.SCHEMA_REVISION}")
    assert mode(copy) == 0o600
    with closing(sqlite3.connect(copy)) as old, closing(sqlite3.connect(path)) as new:
        assert old.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall() == [(schema.SCHEMA_REVISION,)]
        assert old.execute("SELECT count(*) FROM entry").fetchall() == [(1,)]
        assert new.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall() == [("9999",)]
        assert new.execute("SELECT id FROM something_new").fetchall() == [(1,)]
    with pytest.raises(PreconditionFailed, match="schema 9999"):
        open_store(path)


async def test_a_migration_that_fails_changes_nothing(path: Path, next_version: Path) -> None:
    await open_store(path).close()
    script = next_version / "versions" / "r9999_next.py"
    script.write_text(script.read_text() + "    raise RuntimeError('half-way')\n")
    database = open_database(path)
    with pytest.raises(RuntimeError, match="half-way"):
        upgrade(database, target="9999", scripts=next_version)
    database.close()
    with closing(sqlite3.connect(path)) as same:
        assert same.execute("SELECT name FROM sqlite_master WHERE name = 'something_new'").fetchall() == []
    await open_store(path).close()


async def test_the_settings_the_log_depends_on_are_in_force(path: Path) -> None:
    async with running_store(path) as store:
        for engine, only in ((store._database.writer, 0), (store._database.reader, 1)):
            if not only:
                continue  # the writer thread holds the one writing connection
            with engine.connect() as connection:
                pragma = {
                    name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                    for name in ("journal_mode", "synchronous", "foreign_keys", "query_only")
                }
            assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "query_only": only}
    database = open_database(path)
    with database.writer.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA query_only").scalar() == 0
        assert connection.exec_driver_sql("PRAGMA cache_size").scalar() == -WRITER_CACHE_KIB
        assert connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar() == CHECKPOINT_PAGES
    database.close()
