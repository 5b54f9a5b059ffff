"""Stores for tests, over every kind of database. A further kind is a further line in `KINDS`.

PostgreSQL and MariaDB are real: the binaries of the system, started in a private directory when a test first needs one,
ended with the test run. Where they are not installed, their tests are skipped, or fail if MUNIMENT_REQUIRE names them.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from identity_server.store.connecting import open_database
from identity_server.store.database import Database
from identity_server.store.sql_store import SqlStore
from spiffe_core.clock import SystemClock
from spiffe_core.wire.convert_entry import entry_to_proto
from tests.builders import TD
from tests.doubles.database_servers import shared_server

KINDS = ("sqlite", "postgresql", "mariadb")
SHARED_KINDS = ("postgresql", "mariadb")
"""Those that several servers can use at the same time."""
SERVER = "server-1"


def url_of(kind: str, folder: Path) -> str:
    """A database of this kind that belongs to the test alone."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'private' / 'datastore.sqlite3'}"
    return shared_server(kind).new_database(f"t{uuid.uuid4().hex[:20]}")


def encode(entry: Any) -> bytes:
    return entry_to_proto(entry).SerializeToString(deterministic=True)


def open_store(url: str | Path, **over: Any) -> SqlStore:
    options: dict[str, Any] = {
        "trust_domain": TD,
        "server_id": SERVER,
        "encode": encode,
        "clock": SystemClock(),
        **over,
    }
    return SqlStore.open(url, **options)


@asynccontextmanager
async def running_store(url: str | Path, **over: Any) -> AsyncIterator[SqlStore]:
    store = open_store(url, **over)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


__all__ = [
    "KINDS",
    "SERVER",
    "SHARED_KINDS",
    "Database",
    "encode",
    "open_database",
    "open_store",
    "running_store",
    "url_of",
]
