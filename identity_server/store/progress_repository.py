"""What each server that shares the database has written down about how far its agents are (architecture A9).

Most writes leave no event: at rest nobody reads them. One that somebody waits for is told with a `SERVER` event, whose
subject is the server's id behind a prefix, so that a version that does not know this table merely looks at its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from identity_server.domain.agent_progress import ProgressRecord
from identity_server.domain.server_settings import MAX_RECORDS
from identity_server.store.event_log import EventKind, Recorder
from identity_server.store.schema import server_progress

SUBJECT: Final = b"progress/"

_T = server_progress.c
_OTHERS = (
    select(_T.server_id, _T.beat, _T.asked, _T.written_at, _T.members_digest, _T.brief)
    .where(_T.server_id != bindparam("besides"), _T.written_at >= bindparam("since"))
    .order_by(_T.written_at.desc(), _T.server_id)
    .limit(MAX_RECORDS)
)
_MEMBERS = select(_T.members).where(_T.server_id == bindparam("of"))
_DIGEST = select(_T.members_digest).where(_T.server_id == bindparam("of"))
_STALE = select(_T.server_id).where(_T.written_at < bindparam("before")).limit(MAX_RECORDS)


class SqlProgress:
    """The ProgressRepository of one transaction."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder

    def others(self, besides: str, since: int, known: Mapping[str, bytes]) -> tuple[ProgressRecord, ...]:
        """What all servers but one wrote, if not before this unix second.

        Members are read only for a digest that is not known.
        """
        rows = self._connection.execute(_OTHERS, {"besides": besides.encode(), "since": since}).all()
        found: list[ProgressRecord] = []
        for row in rows:
            server_id, digest = bytes(row.server_id).decode(errors="replace"), bytes(row.members_digest)
            members = b""
            if known.get(server_id) != digest:
                members = bytes(self._connection.execute(_MEMBERS, {"of": bytes(row.server_id)}).scalar_one())
            found.append(
                ProgressRecord(server_id, row.beat, row.asked, row.written_at, digest, members, bytes(row.brief))
            )
        return tuple(found)

    def put(self, record: ProgressRecord, *, tell: bool) -> None:
        """Store or overwrite. `tell` has all servers know at once."""
        key = record.server_id.encode()
        digest = self._connection.execute(_DIGEST, {"of": key}).scalar_one_or_none()
        values: dict[str, Any] = {
            "beat": record.beat,
            "asked": record.asked,
            "written_at": record.written_at,
            "brief": record.brief,
        }
        if digest is None or bytes(digest) != record.members_digest:
            values |= {"members_digest": record.members_digest, "members": record.members}
        self._recorder.writing()
        if digest is None:
            self._connection.execute(insert(server_progress), {**values, "server_id": key})
        else:
            self._connection.execute(update(server_progress).where(_T.server_id == key).values(values))
        if tell:
            self._tell(key)

    def remove(self, server_id: str) -> None:
        """Delete what a server wrote, and have all others know at once; an unknown one is passed over."""
        key = server_id.encode()
        if self._connection.execute(_DIGEST, {"of": key}).scalar_one_or_none() is None:
            return
        self._recorder.writing()
        self._connection.execute(delete(server_progress).where(_T.server_id == key))
        self._tell(key)

    def forget(self, before: int) -> None:
        """Delete what was written before this unix second, of at most `MAX_RECORDS` servers. Nobody is told."""
        stale = [bytes(one) for one in self._connection.execute(_STALE, {"before": before}).scalars()]
        if stale:
            self._recorder.writing()
            self._connection.execute(delete(server_progress).where(_T.server_id.in_(stale)))

    def _tell(self, key: bytes) -> None:
        self._recorder.changed(EventKind.SERVER, SUBJECT + key)
