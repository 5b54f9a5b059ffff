"""Registration entries in the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, delete, func, select, update

from identity_server.domain.listing import EntryFilter, Page, query_name
from identity_server.store.bulk import insert_rows
from identity_server.store.event_log import EventKind, Recorder
from identity_server.store.mapping import (
    ENTRY_COLUMNS,
    Values,
    digest,
    digest_of_selector,
    entry_of,
    entry_values,
)
from identity_server.store.paging import page_of
from identity_server.store.schema import entry, entry_federation, entry_selector
from identity_server.store.selection import set_condition
from spiffe_core.entry import RegistrationEntry, similarity
from spiffe_core.errors import Conflict, NotFound
from spiffe_core.spiffe_id import TrustDomain

IN_LIST = 500
"""Longest IN list of one statement."""
STREAM = 5_000

_BY_ID = select(entry).where(entry.c.id == bindparam("key"))
_BY_IDS = select(entry).where(entry.c.id.in_(bindparam("keys", expanding=True)))
_BY_SIMILARITY = select(entry).where(entry.c.similarity == bindparam("key"))
_BY_SIMILARITIES = select(entry).where(entry.c.similarity.in_(bindparam("keys", expanding=True)))
_IDS = select(entry.c.id).where(entry.c.id.in_(bindparam("ids", expanding=True)))
_ALL = select(entry).execution_options(yield_per=STREAM)
_EXPIRED = (
    select(entry)
    .where(entry.c.expires_at > 0, entry.c.expires_at < bindparam("now"))
    .order_by(entry.c.expires_at, entry.c.row_key)
    .limit(bindparam("most"))
)
_FEDERATING = (
    select(entry_federation.c.digest, func.count().label("entries"))
    .where(entry_federation.c.digest.in_(bindparam("digests", expanding=True)))
    .group_by(entry_federation.c.digest)
)
_SIDE_COLUMNS = ("row_key", "digest")
_REPLACE = update(entry).where(entry.c.row_key == bindparam("key"))
_REMOVE = delete(entry).where(entry.c.id.in_(bindparam("ids", expanding=True)))


class NewEntries:
    """Entries added in the present transaction that are not in the tables yet.

    A batch adds the entries of many callers; writing them together costs a few statements instead of a few per caller.
    They are written before anything reads or changes the tables in a way that could miss them.
    """

    __slots__ = ("by_id", "by_similarity", "rows")

    def __init__(self) -> None:
        self.by_id: dict[str, RegistrationEntry] = {}
        self.by_similarity: dict[bytes, RegistrationEntry] = {}
        self.rows: list[tuple[Values, RegistrationEntry]] = []

    def taken(self, rows: Sequence[tuple[Values, RegistrationEntry]]) -> bool:
        """True if one of `rows` has an id or a similarity of another, or of an entry that waits here."""
        ids = {new.id for _, new in rows}
        similarities = {values["similarity"] for values, _ in rows}
        return (
            min(len(ids), len(similarities)) < len(rows)
            or not self.by_id.keys().isdisjoint(ids)
            or not self.by_similarity.keys().isdisjoint(similarities)
        )

    def add(self, values: Values, new: RegistrationEntry) -> None:
        """Remember one entry and its columns."""
        self.by_id[new.id] = new
        self.by_similarity[values["similarity"]] = new
        self.rows.append((values, new))

    def write(self, connection: Connection) -> None:
        """Put all of them into the tables; their unique columns refuse an id or a similarity that is taken."""
        if not self.rows:
            return
        rows, self.rows = self.rows, []
        self.by_id, self.by_similarity = {}, {}
        insert_rows(connection, entry, ENTRY_COLUMNS, [tuple(values.values()) for values, _ in rows])
        _add_sides(connection, [(values["row_key"], new) for values, new in rows])


class SqlEntries:
    """The EntryRepository of one operation."""

    def __init__(self, connection: Connection, recorder: Recorder, new: NewEntries) -> None:
        self._tables = connection
        self._recorder = recorder
        self._new = new

    @property
    def _connection(self) -> Connection:
        """The connection, for statements that must see the new entries too."""
        self._new.write(self._tables)
        return self._tables

    def get(self, entry_id: str) -> RegistrationEntry | None:
        """The entry, or None."""
        return self.many((entry_id,)).get(entry_id)

    def many(self, ids: Sequence[str]) -> dict[str, RegistrationEntry]:
        """The entries that exist among `ids`."""
        found = {one: self._new.by_id[one] for one in ids if one in self._new.by_id}
        for row in self._rows(_BY_ID, _BY_IDS, [one.encode() for one in ids if one not in found]):
            stored = entry_of(row)
            found[stored.id] = stored
        return found

    def similar(self, entries: Sequence[RegistrationEntry]) -> dict[bytes, RegistrationEntry]:
        """Similarity digest -> the entry that has it."""
        digests = list(map(similarity, entries))
        found = {one: self._new.by_similarity[one] for one in digests if one in self._new.by_similarity}
        for row in self._rows(_BY_SIMILARITY, _BY_SIMILARITIES, [one for one in digests if one not in found]):
            found[bytes(row.similarity)] = entry_of(row)
        return found

    def _rows(self, single: Select[Any], several: Select[Any], keys: Sequence[bytes]) -> Iterator[Row[Any]]:
        """The rows with these keys; asking for one is by far the most frequent, and cheaper without an IN list."""
        if len(keys) == 1:
            yield from self._tables.execute(single, {"key": keys[0]})
            return
        for part in chunks(keys):
            yield from self._tables.execute(several, {"keys": part})

    def add(self, entries: Sequence[RegistrationEntry]) -> None:
        """Store new entries; Conflict if an id or a similarity is taken."""
        if not entries:
            return
        rows = [(entry_values(one), one) for one in entries]
        if self._new.taken(rows):
            raise Conflict("an entry with this id, or a similar one, exists already")
        self._recorder.writing()
        for values, one in rows:
            values["row_key"] = self._recorder.next_row_key()
            self._new.add(values, one)
        self._changed(entries)

    def replace(self, entries: Sequence[RegistrationEntry]) -> None:
        """Overwrite those that differ from what is stored; NotFound, before any write, if one is not stored."""
        self._new.write(self._tables)
        stored = {row.id.decode(): row for row in self._rows(_BY_ID, _BY_IDS, [one.id.encode() for one in entries])}
        for one in entries:
            if one.id not in stored:
                raise NotFound("entry not found", entry_id=one.id)
        changed = [(stored[one.id].row_key, one) for one in entries if entry_of(stored[one.id]) != one]
        if not changed:
            return
        self._recorder.writing()
        self._tables.execute(_REPLACE, [{**entry_values(one), "key": key} for key, one in changed])
        for side in (entry_selector, entry_federation):
            for part in chunks([key for key, _ in changed]):
                self._tables.execute(delete(side).where(side.c.row_key.in_(part)))
        _add_sides(self._tables, changed)
        self._changed([one for _, one in changed])

    def remove(self, ids: Sequence[str]) -> None:
        """Delete; ids that do not exist are passed over."""
        for part in chunks(ids):
            wanted = {"ids": [entry_id.encode() for entry_id in part]}
            present = list(self._connection.execute(_IDS, wanted).scalars())
            if present:
                self._recorder.writing()
                self._connection.execute(_REMOVE, {"ids": present})
            for entry_id in present:
                self._recorder.changed(EventKind.ENTRY, bytes(entry_id), None)

    def page(self, wanted: EntryFilter, after: str = "", limit: int = 0) -> Page[RegistrationEntry]:
        """Entries in order of creation, beginning after the page token `after`."""
        return page_of(self._connection, entry, _conditions(wanted), after, limit, entry_of, query=query_name(wanted))

    def count(self, wanted: EntryFilter) -> int:
        """How many entries there are."""
        return self._connection.execute(
            select(func.count()).select_from(entry).where(*_conditions(wanted))
        ).scalar_one()

    def federating(self, trust_domains: Sequence[TrustDomain]) -> dict[TrustDomain, int]:
        """How many entries federate with each of these trust domains; those with which none does are left out."""
        wanted = {digest(one.name): one for one in trust_domains}
        return {
            wanted[bytes(row.digest)]: row.entries
            for part in chunks(list(wanted))
            for row in self._connection.execute(_FEDERATING, {"digests": part})
        }

    def expired(self, now: int, limit: int) -> list[RegistrationEntry]:
        """At most `limit` entries whose expiry is set and before `now`, oldest expiry first."""
        return [entry_of(row) for row in self._connection.execute(_EXPIRED, {"now": now, "most": limit})]

    def all(self) -> Iterator[RegistrationEntry]:
        """Every entry, streamed."""
        return map(entry_of, self._connection.execute(_ALL))

    def _changed(self, entries: Sequence[RegistrationEntry]) -> None:
        for one in entries:
            self._recorder.changed(EventKind.ENTRY, one.id.encode(), one)


def _add_sides(connection: Connection, entries: Sequence[tuple[int, RegistrationEntry]]) -> None:
    selectors = [(key, digest_of_selector(one)) for key, item in entries for one in item.selectors]
    insert_rows(connection, entry_selector, _SIDE_COLUMNS, selectors)
    federations = [(key, digest(one.name)) for key, item in entries for one in item.federates_with]
    insert_rows(connection, entry_federation, _SIDE_COLUMNS, federations)


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
