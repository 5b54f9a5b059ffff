"""SQLite: WAL, synchronous=FULL, one process per file.

The driver's own transaction handling is switched off, so that BEGIN is exactly where we say: IMMEDIATE for the writer.

A batch of 500 new entries changes a page of its own for nearly each digest that is indexed, some 1,800 of them where
there are 100,000 entries. SQLite's defaults hold 500 pages and copy the journal into the file after each 1,000: pages
are written to the journal, forgotten and read again within one transaction, and each transaction ends with a second
copy of all it wrote. The writer has room for one such transaction, and several of them share a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

from identity_server.store.database import READERS, Database
from identity_server.store.sqlite_file import SqliteFile, copy_before_migration
from spiffe_core.errors import ConfigError

BUSY_MILLISECONDS = 5_000
"""How long SQLite waits for a lock that only a foreign tool can hold, before the writer tries again."""
JOURNAL_BYTES = 64 * 1024 * 1024
CHECKPOINT_PAGES = 4_000
"""The journal is copied into the file when it has so many pages (16 MiB). The commit that does it waits for it."""
WRITER_CACHE_KIB = 8_000
"""The writer's pages; what a large write took of it is given back when the writer rests."""


class SqliteDatabase(Database):
    """A locked database file."""

    def __init__(self, path: Path, *, busy_milliseconds: int = BUSY_MILLISECONDS) -> None:
        self.path = path
        self.place = str(path)
        self._file = SqliteFile(path)
        address = URL.create("sqlite", database=str(path))
        options: dict[str, Any] = {
            "poolclass": QueuePool,
            "max_overflow": 0,
            "hide_parameters": True,
            "connect_args": {"timeout": busy_milliseconds / 1000, "check_same_thread": False},
        }
        self.writer = create_engine(address, pool_size=1, **options)
        self.reader = create_engine(address, pool_size=READERS, **options)
        room = f"cache_size = -{WRITER_CACHE_KIB}"
        _configure(self.writer, "BEGIN IMMEDIATE", room, f"wal_autocheckpoint = {CHECKPOINT_PAGES}", "query_only = 0")
        _configure(self.reader, "BEGIN", "query_only = 1")

    def before_migration(self, revision: str) -> None:
        """Copy the file beside itself."""
        copy_before_migration(self.path, revision)

    def rest(self, connection: Connection) -> None:
        """Give the pages back that the connection keeps in memory."""
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA shrink_memory").close()
        super().rest(connection)

    def close(self) -> None:
        """Close every connection and let the file go."""
        super().close()
        self._file.close()


def sqlite_path(url: URL) -> Path:
    """The file a SQLite URL names.

    Raises:
        ConfigError: it names none, or options.
    """
    if not url.database or url.database == ":memory:" or url.database.startswith("file:") or url.query:
        raise ConfigError(
            "database.url: must name a file, as in sqlite:////var/lib/muniment/server/datastore.sqlite3, without "
            "options; a database in memory would lose every identity",
            field="database.url",
        )
    path = Path(url.database)
    return path if path.is_absolute() else Path.cwd() / path


def _configure(engine: Engine, begin: str, *pragmas: str) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"journal_size_limit = {JOURNAL_BYTES}",
            *pragmas,
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)
