"""From a URL to a database. The drivers of PostgreSQL and MariaDB are loaded only when the URL names them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from identity_server.store.database import Access, Database
from identity_server.store.sqlite_database import BUSY_MILLISECONDS, SqliteDatabase, sqlite_path
from spiffe_core.errors import ConfigError

NO_ACCESS = Access()


def open_database(
    url: str | Path, access: Access = NO_ACCESS, *, busy_milliseconds: int = BUSY_MILLISECONDS
) -> Database:
    """The database at `url`, or the SQLite file at this path. Nothing is connected yet.

    Raises:
        ConfigError: the URL or the place cannot work; names the key.
        Conflict: another process has the SQLite file.
    """
    parsed = _parsed(url)
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        return SqliteDatabase(sqlite_path(parsed), busy_milliseconds=busy_milliseconds)
    if parsed.drivername == "postgresql":
        from identity_server.store.postgresql import PostgresDatabase

        return PostgresDatabase(parsed, access)
    if parsed.drivername in {"mysql", "mariadb"}:
        from identity_server.store.mariadb import MariaDatabase

        return MariaDatabase(parsed, access)
    raise ConfigError(
        f"database.url: {parsed.drivername} is not supported; use sqlite, postgresql or mariadb", field="database.url"
    )


def _parsed(url: str | Path) -> URL:
    if isinstance(url, Path) or "://" not in str(url):
        return URL.create("sqlite", database=str(url))
    try:
        return make_url(str(url))
    except ArgumentError:
        raise ConfigError(
            "database.url: is not a database URL; write sqlite, sqlite:///absolute/path, "
            "postgresql://user@host/database or mariadb://user@host/database",
            field="database.url",
        ) from None
