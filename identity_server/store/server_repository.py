"""What each server that shares the database has written down about itself (reliability R39)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from identity_server.domain.server_settings import MAX_RECORDS, IssuingSettings, ServerRecord
from identity_server.store.event_log import EventKind, Recorder
from identity_server.store.mapping import stored_value
from identity_server.store.schema import server_settings

_ONE = select(server_settings).where(server_settings.c.server_id == bindparam("of"))
_ALL = (
    select(server_settings)
    .order_by(server_settings.c.written_at.desc(), server_settings.c.server_id)
    .limit(MAX_RECORDS)
)
_STALE = (
    select(server_settings.c.server_id)
    .where(server_settings.c.written_at < bindparam("before"))
    .order_by(server_settings.c.written_at)
    .limit(MAX_RECORDS)
)


class SqlServers:
    """The ServerRepository of one transaction."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder

    def all(self) -> tuple[ServerRecord, ...]:
        """The servers that wrote last, newest first."""
        return tuple(map(_record, self._connection.execute(_ALL)))

    def put(self, record: ServerRecord) -> None:
        """Store or overwrite; an identical record is left alone."""
        key = record.server_id.encode()
        row = self._connection.execute(_ONE, {"of": key}).one_or_none()
        if row is not None and _record(row) == record:
            return
        values = {
            "fingerprint": record.settings.fingerprint,
            "document": record.settings.document,
            "written_at": record.written_at,
        }
        self._recorder.writing()
        if row is None:
            self._connection.execute(insert(server_settings), {**values, "server_id": key})
        else:
            self._connection.execute(update(server_settings).where(server_settings.c.server_id == key).values(values))
        self._recorder.changed(EventKind.SERVER, key)

    def forget(self, before: int) -> None:
        """Delete the records of servers that wrote last before this unix second, at most `MAX_RECORDS` of them."""
        stale = [bytes(one) for one in self._connection.execute(_STALE, {"before": before}).scalars()]
        if not stale:
            return
        self._recorder.writing()
        self._connection.execute(delete(server_settings).where(server_settings.c.server_id.in_(stale)))
        for key in stale:
            self._recorder.changed(EventKind.SERVER, key)


def _record(row: Row[Any]) -> ServerRecord:
    return stored_value(
        "server_settings",
        row.server_id,
        lambda: ServerRecord(row.server_id.decode(), IssuingSettings.parse(bytes(row.document)), row.written_at),
    )
