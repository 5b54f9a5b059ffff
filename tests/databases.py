"""Stores for tests, over every kind of database. A further kind is a further line in `KINDS`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from identity_server.store.sql_store import SqlStore
from spiffe_core.clock import SystemClock
from spiffe_core.wire.convert_entry import entry_to_proto
from tests.builders import TD

KINDS = ("sqlite",)
SERVER = "server-1"


def url_of(kind: str, folder: Path) -> str:
    """A database of this kind that belongs to the test alone."""
    assert kind == "sqlite"
    return f"sqlite:///{folder / 'private' / 'datastore.sqlite3'}"


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
