"""Engines with the settings the event log depends on.

Every write transaction of the writer begins with the database's meaning of BEGIN IMMEDIATE, every read is one
snapshot, and nothing is acknowledged before it is on the disk. SQLite: WAL, synchronous=FULL, the driver's own
transaction handling switched off so that BEGIN is exactly where we say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool

from identity_server.store.sqlite_file import SqliteFile
from spiffe_core.errors import ConfigError

BUSY_MILLISECONDS = 5_000
"""How long SQLite waits for a lock that only a foreign tool can hold, before the writer tries again."""
JOURNAL_BYTES = 64 * 1024 * 1024
READERS = 6
"""Read connections: four for queries, one for the follower, one to spare."""


class Database:
    """A writing and a reading engine on one database, and where it is, in words without credentials."""

    def __init__(self, url: str | Path, *, busy_milliseconds: int = BUSY_MILLISECONDS) -> None:
        parsed = _parsed(url)
        if parsed.get_backend_name() != "sqlite":
            raise ConfigError(
                f"database.url: {parsed.get_backend_name()} is not supported by this version; use sqlite",
                field="database.url",
            )
        self.path = _sqlite_path(parsed)
        self.place = str(self.path)
        self._file = SqliteFile(self.path)
        address = URL.create("sqlite", database=str(self.path))
        options: dict[str, Any] = {
            "poolclass": QueuePool,
            "max_overflow": 0,
            "hide_parameters": True,
            "connect_args": {"timeout": busy_milliseconds / 1000, "check_same_thread": False},
        }
        self.writer = create_engine(address, pool_size=1, **options)
        self.reader = create_engine(address, pool_size=READERS, **options)
        for engine, begin, only in ((self.writer, "BEGIN IMMEDIATE", 0), (self.reader, "BEGIN", 1)):
            _configure_sqlite(engine, begin, query_only=only)

    def close(self) -> None:
        """Close every connection and let the file go."""
        self.reader.dispose()
        self.writer.dispose()
        self._file.close()


def _parsed(url: str | Path) -> URL:
    if isinstance(url, Path) or "://" not in str(url):
        return URL.create("sqlite", database=str(url))
    try:
        return make_url(str(url))
    except ArgumentError:
        raise ConfigError(
            "database.url: is not a database URL; write sqlite or sqlite:///absolute/path", field="database.url"
        ) from None


def _sqlite_path(url: URL) -> Path:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:") or url.query:
        raise ConfigError(
            "database.url: must name a file, as in sqlite:////var/lib/muniment/server/datastore.sqlite3, without "
            "options; a database in memory would lose every identity",
            field="database.url",
        )
    path = Path(url.database)
    return path if path.is_absolute() else Path.cwd() / path


def _configure_sqlite(engine: Engine, begin: str, *, query_only: int) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"journal_size_limit = {JOURNAL_BYTES}",
            f"query_only = {query_only}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)
