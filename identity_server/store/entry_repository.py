"""Registration entries in the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, select, update

from identity_server.domain.listing import EntryFilter, Page
from identity_server.store.event_log import EventKind, Recorder
from identity_server.store.mapping import (
    digest,
    digest_of_selector,
    entry_of,
    entry_values,
)
from identity_server.store.paging import page_of
from identity_server.store.schema import entry, entry_federation, entry_selector
from identity_server.store.selection import set_condition
from spiffe_core.entry import RegistrationEntry, similarity
from spiffe_core.errors import NotFound

IN_LIST = 500
"""Longest IN list of one statement."""
STREAM = 5_000

_BY_IDS = select(entry).where(entry.c.id.in_(bindparam("ids", expanding=True)))
_BY_SIMILARITY = select(entry).where(entry.c.similarity.in_(bindparam("digests", expanding=True)))
_IDS = select(entry.c.id).where(entry.c.id.in_(bindparam("ids", expanding=True)))
_ALL = select(entry).execution_options(yield_per=STREAM)
_EXPIRED = (
    select(entry)
    .where(entry.c.expires_at > 0, entry.c.expires_at < bindparam("now"))
    .order_by(entry.c.expires_at, entry.c.row_key)
    .limit(bindparam("most"))
)
_INSERT, _INSERT_SELECTOR, _INSERT_FEDERATION = insert(entry), insert(entry_selector), insert(entry_federation)
_REPLACE = update(entry).where(entry.c.row_key == bindparam("key"))
_REMOVE = delete(entry).where(entry.c.id.in_(bindparam("ids", expanding=True)))


class SqlEntries:
    """The EntryRepository of one transaction."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder

    def get(self, entry_id: str) -> RegistrationEntry | None:
        """The entry, or None."""
        return self.many((entry_id,)).get(entry_id)

    def many(self, ids: Sequence[str]) -> dict[str, RegistrationEntry]:
        """The entries that exist among `ids`."""
        found = (
            entry_of(row)
            for part in chunks(ids)
            for row in self._connection.execute(_BY_IDS, {"ids": [entry_id.encode() for entry_id in part]})
        )
        return {one.id: one for one in found}

    def similar(self, entries: Sequence[RegistrationEntry]) -> dict[bytes, RegistrationEntry]:
        """Similarity digest -> the stored entry that has it."""
        found: dict[bytes, RegistrationEntry] = {}
        for part in chunks(entries):
            digests = [similarity(one) for one in part]
            for row in self._connection.execute(_BY_SIMILARITY, {"digests": digests}):
                found[bytes(row.similarity)] = entry_of(row)
        return found

    def add(self, entries: Sequence[RegistrationEntry]) -> None:
        """Store new entries; the unique columns refuse an id or a similarity that is taken."""
        if not entries:
            return
        keys = [self._recorder.next_row_key() for _ in entries]
        self._recorder.writing()
        self._connection.execute(
            _INSERT, [{**entry_values(one), "row_key": key} for key, one in zip(keys, entries, strict=True)]
        )
        self._add_sides(keys, entries)
        self._changed(entries)

    def replace(self, entries: Sequence[RegistrationEntry]) -> None:
        """Overwrite those that differ from what is stored; NotFound, before any write, if one is not stored."""
        stored: dict[str, tuple[int, RegistrationEntry]] = {}
        for part in chunks(entries):
            for row in self._connection.execute(_BY_IDS, {"ids": [one.id.encode() for one in part]}):
                stored[row.id.decode()] = (row.row_key, entry_of(row))
        for one in entries:
            if one.id not in stored:
                raise NotFound("entry not found", entry_id=one.id)
        changed = [one for one in entries if stored[one.id][1] != one]
        if not changed:
            return
        keys = [stored[one.id][0] for one in changed]
        self._recorder.writing()
        self._connection.execute(
            _REPLACE, [{**entry_values(one), "key": key} for key, one in zip(keys, changed, strict=True)]
        )
        for side in (entry_selector, entry_federation):
            for part in chunks(keys):
                self._connection.execute(delete(side).where(side.c.row_key.in_(part)))
        self._add_sides(keys, changed)
        self._changed(changed)

    def remove(self, ids: Sequence[str]) -> None:
        """Delete; ids that do not exist are passed over."""
        for part in chunks(ids):
            wanted = {"ids": [entry_id.encode() for entry_id in part]}
            present = list(self._connection.execute(_IDS, wanted).scalars())
            if present:
                self._recorder.writing()
                self._connection.execute(_REMOVE, {"ids": present})
            for entry_id in present:
                self._recorder.changed(EventKind.ENTRY, bytes(entry_id))

    def page(self, wanted: EntryFilter, after: str = "", limit: int = 0) -> Page[RegistrationEntry]:
        """Entries in order of creation, beginning after the page token `after`."""
        return page_of(self._connection, entry, _conditions(wanted), after, limit, entry_of)

    def count(self, wanted: EntryFilter) -> int:
        """How many entries there are."""
        return self._connection.execute(
            select(func.count()).select_from(entry).where(*_conditions(wanted))
        ).scalar_one()

    def expired(self, now: int, limit: int) -> list[RegistrationEntry]:
        """At most `limit` entries whose expiry is set and before `now`, oldest expiry first."""
        return [entry_of(row) for row in self._connection.execute(_EXPIRED, {"now": now, "most": limit})]

    def all(self) -> Iterator[RegistrationEntry]:
        """Every entry, streamed."""
        return map(entry_of, self._connection.execute(_ALL))

    def _add_sides(self, keys: Sequence[int], entries: Sequence[RegistrationEntry]) -> None:
        pairs = list(zip(keys, entries, strict=True))
        self._connection.execute(
            _INSERT_SELECTOR,
            [{"row_key": key, "digest": digest_of_selector(one)} for key, item in pairs for one in item.selectors],
        )
        federations = [
            {"row_key": key, "digest": digest(one.name)} for key, item in pairs for one in item.federates_with
        ]
        if federations:
            self._connection.execute(_INSERT_FEDERATION, federations)

    def _changed(self, entries: Sequence[RegistrationEntry]) -> None:
        for one in entries:
            self._recorder.changed(EventKind.ENTRY, one.id.encode())


def _conditions(wanted: EntryFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.spiffe_id is not None:
        conditions.append(entry.c.spiffe_id_digest == digest(str(wanted.spiffe_id)))
    if wanted.parent_id is not None:
        conditions.append(entry.c.parent_id_digest == digest(str(wanted.parent_id)))
    if wanted.selectors is not None:
        given = [digest_of_selector(one) for one in wanted.selectors]
        conditions.append(set_condition(entry, entry_selector, given, wanted.selectors_match))
    if wanted.federates_with is not None:
        given = [digest(one.name) for one in wanted.federates_with]
        conditions.append(set_condition(entry, entry_federation, given, wanted.federates_with_match))
    if wanted.hint is not None:
        conditions.append(entry.c.hint == wanted.hint.encode())
    if wanted.downstream is not None:
        conditions.append(entry.c.downstream == wanted.downstream)
    return conditions


def chunks(items: Sequence[Any], size: int = IN_LIST) -> Iterator[Sequence[Any]]:
    """`items` in parts that fit an IN list."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
