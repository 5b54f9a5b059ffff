"""The ordered event log: one head row, locked first and advanced last, and key-only events.

Every writing transaction takes the head's lock before it reads anything, so writers are serial and revision order is
commit order is visibility order, without holes. Each revision carries a random token; a position is (epoch, revision,
token), which tells histories apart even when their revisions look alike.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from identity_server.domain.history import Position
from identity_server.store.bulk import insert_rows
from identity_server.store.own_writes import UNREAD, Changes
from identity_server.store.schema import installation, log_event, log_head
from spiffe_core.errors import CorruptState, Internal, PreconditionFailed
from spiffe_core.spiffe_id import TrustDomain

TOKEN_BITS = 62
PAGE = 5_000
ROWS_PER_OPERATION = 1 << 16
"""Row keys are the creating revision times this, plus a number within the operation."""


class EventKind(enum.IntEnum):
    """What kind of subject an event names. Numbers are stored: they are never reused."""

    HISTORY = 1
    ENTRY = 2
    AGENT = 3
    BUNDLE = 4
    AUTHORITY = 5
    JOIN_TOKEN = 6
    RELATIONSHIP = 7
    ORDER = 8
    SERVER = 9


@dataclass(frozen=True, slots=True)
class Head:
    """The log's head row."""

    epoch: int
    revision: int
    token: int
    floor: int

    @property
    def position(self) -> Position:
        """The position this head stands at."""
        return Position(self.epoch, self.revision, self.token)


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the log."""

    revision: int
    token: int
    kind: int
    subject: bytes


class Recorder:
    """What one operation has changed so far. An exception is only a refusal while `touched` is False."""

    __slots__ = ("_row_keys", "epoch", "events", "floor", "revision", "touched")

    def __init__(self, revision: int) -> None:
        self.revision = revision
        """The revision the operation gets if it writes."""
        self.events: Changes = {}
        self.touched = False
        self.epoch: int | None = None
        self.floor: int | None = None
        self._row_keys = 0

    def writing(self) -> None:
        """Note that a writing statement follows. Called before it, since it may fail half-way."""
        self.touched = True

    def changed(self, kind: EventKind, subject: bytes, value: object = UNREAD) -> None:
        """Note that the stored state of `subject` is different now, and its value if it is known; None: deleted."""
        self.events[kind, subject] = value

    def next_row_key(self) -> int:
        """A key for a new row: greater than every key in the tables."""
        if self._row_keys >= ROWS_PER_OPERATION:
            raise Internal(f"one write creates more than {ROWS_PER_OPERATION} rows; split it")
        self._row_keys += 1
        return self.revision * ROWS_PER_OPERATION + self._row_keys - 1


class ReadOnly(Recorder):
    """The recorder of a query: writing is our mistake and is refused before the database sees it."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0)

    def writing(self) -> None:
        """Refuse."""
        raise Internal("a query tried to write; use Store.execute")


class LogUpkeep:
    """The log as an operation may tend it: prune it, or begin a new history."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder

    def head(self) -> Head:
        """The head as this transaction sees it."""
        return read_head(self._connection)

    def prune(self, keep_from: int, limit: int) -> int:
        """Delete events of revisions below `keep_from`, at most `limit` revisions; the new floor."""
        floor = self.head().floor
        wanted = min(keep_from, floor + limit)
        if wanted <= floor:
            return floor
        self._recorder.writing()
        self._connection.execute(delete(log_event).where(log_event.c.revision < wanted))
        self._recorder.floor = wanted
        return wanted

    def begin_history(self, old_epoch: int, now_ms: int) -> bool:
        """Give the history a new number, if nobody has yet: older positions are void from here on."""
        if self.head().epoch != old_epoch:
            return False
        self._recorder.writing()
        self._recorder.epoch = max(old_epoch + 1, now_ms)
        self._recorder.changed(EventKind.HISTORY, b"")
        return True


_HEAD = select(log_head.c.epoch, log_head.c.revision, log_head.c.token, log_head.c.floor).where(log_head.c.id == 1)
_LOCK_HEAD = _HEAD.with_for_update()
_MOVE_HEAD = (
    update(log_head)
    .where(log_head.c.id == 1)
    .values(
        epoch=bindparam("new_epoch"),
        revision=bindparam("new_revision"),
        token=bindparam("new_token"),
        floor=bindparam("new_floor"),
    )
)
_EVENT_COLUMNS = ("revision", "seq", "token", "kind", "subject")
_PAGE = (
    select(log_event.c.revision, log_event.c.seq, log_event.c.token, log_event.c.kind, log_event.c.subject)
    .where(log_event.c.revision >= bindparam("since"))
    .order_by(log_event.c.revision, log_event.c.seq)
    .limit(bindparam("page"))
)
_PAGE_WITHIN = _PAGE.where(
    (log_event.c.revision > bindparam("since")) | (log_event.c.seq > bindparam("after_seq"))
)  # the rest of a revision that a page cut in two, and what follows it
_TOKEN_AT = select(log_event.c.token).where(log_event.c.revision == bindparam("at"), log_event.c.seq == 0)


def read_head(connection: Connection) -> Head:
    """The head, as the transaction's snapshot has it."""
    return _head(connection.execute(_HEAD).one_or_none())


def lock_head(connection: Connection) -> Head:
    """The head, locked until the transaction ends. The first statement of every writing transaction."""
    return _head(connection.execute(_LOCK_HEAD).one_or_none())


def _head(row: Row[int, int, int, int] | None) -> Head:
    if row is None:
        raise CorruptState("database: the head of the event log is missing; restore the database from a backup")
    return Head(row.epoch, row.revision, row.token, row.floor)


EventRow = tuple[int, int, int, int, bytes]
"""Revision, place within it, token, kind, subject."""


def advance(connection: Connection, head: Head, rows: Sequence[EventRow]) -> None:
    """Append the events and move the head: the last statements before COMMIT."""
    insert_rows(connection, log_event, _EVENT_COLUMNS, rows)
    connection.execute(
        _MOVE_HEAD,
        {"new_epoch": head.epoch, "new_revision": head.revision, "new_token": head.token, "new_floor": head.floor},
    )


def token_at(connection: Connection, revision: int) -> int | None:
    """The token of a revision that is still in the log."""
    return connection.execute(_TOKEN_AT, {"at": revision}).scalar_one_or_none()


def events_since(connection: Connection, revision: int, page: int = PAGE) -> Iterator[Event]:
    """Every event from `revision` on, in order, page by page inside the caller's snapshot."""
    rows = connection.execute(_PAGE, {"since": revision, "page": page}).all()
    while rows:
        for row in rows:
            yield Event(row.revision, row.token, row.kind, bytes(row.subject))
        if len(rows) < page:
            return
        last = rows[-1]
        rows = connection.execute(_PAGE_WITHIN, {"since": last.revision, "after_seq": last.seq, "page": page}).all()


def bootstrap(connection: Connection, trust_domain: TrustDomain, now_ms: int, token: int) -> None:
    """Write revision 1 (kind history) of a new database, or check that the database is of this trust domain."""
    found = connection.execute(select(installation.c.trust_domain)).scalar_one_or_none()
    if found is not None:
        if bytes(found) != trust_domain.name.encode():
            raise PreconditionFailed(
                f"trust_domain: the database belongs to trust domain {bytes(found).decode(errors='replace')}, the "
                f"configuration says {trust_domain}; correct trust_domain, or name another database"
            )
        read_head(connection)
        return
    connection.execute(insert(installation), {"id": 1, "trust_domain": trust_domain.name.encode()})
    insert_rows(connection, log_event, _EVENT_COLUMNS, [(1, 0, token, int(EventKind.HISTORY), b"")])
    connection.execute(insert(log_head), {"id": 1, "epoch": now_ms, "revision": 1, "token": token, "floor": 1})
