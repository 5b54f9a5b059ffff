"""Attested agents in the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, delete, func, insert, select, update

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.listing import AgentFilter, Page, query_name
from identity_server.store.entry_repository import STREAM, chunks
from identity_server.store.event_log import EventKind, Recorder
from identity_server.store.mapping import agent_of, agent_values, digest, digest_of_selector
from identity_server.store.paging import page_of
from identity_server.store.schema import agent, agent_selector
from identity_server.store.selection import set_condition
from spiffe_core.errors import Internal
from spiffe_core.spiffe_id import TrustDomain

_BY_DIGEST = select(agent).where(agent.c.digest == bindparam("of"))
_BY_DIGESTS = select(agent).where(agent.c.digest.in_(bindparam("digests", expanding=True)))
_ALL = select(agent).execution_options(yield_per=STREAM)
_INSERT, _INSERT_SELECTOR = insert(agent), insert(agent_selector)
_REPLACE = update(agent).where(agent.c.row_key == bindparam("key"))
_REMOVE = delete(agent).where(agent.c.digest == bindparam("of"))
_REMOVE_SELECTORS = delete(agent_selector).where(agent_selector.c.row_key == bindparam("key"))


class SqlAgents:
    """The AgentRepository of one transaction."""

    def __init__(self, connection: Connection, recorder: Recorder, trust_domain: TrustDomain) -> None:
        self._connection = connection
        self._recorder = recorder
        self._trust_domain = trust_domain

    def get(self, path: str) -> AttestedAgent | None:
        """The agent, or None."""
        row = self._row(path)
        return None if row is None else agent_of(row)

    def _row(self, path: str) -> Row[Any] | None:
        """Most look-ups are for one, which is cheaper without an IN list."""
        return self._connection.execute(_BY_DIGEST, {"of": self._digest(path)}).one_or_none()

    def many(self, paths: Sequence[str]) -> dict[str, AttestedAgent]:
        """The agents that exist among `paths`."""
        found = (
            agent_of(row)
            for part in chunks(paths)
            for row in self._connection.execute(_BY_DIGESTS, {"digests": [self._digest(path) for path in part]})
        )
        return {one.spiffe_id.path: one for one in found}

    def put(self, new: AttestedAgent) -> None:
        """Store or overwrite; an identical record is left alone."""
        if not new.spiffe_id.member_of(self._trust_domain):
            raise Internal(f"agent {new.spiffe_id} is not of trust domain {self._trust_domain}")
        stored = self._row(new.spiffe_id.path)
        before = agent_of(stored) if stored is not None else None
        if before == new:
            return
        self._recorder.writing()
        if stored is None:
            key = self._recorder.next_row_key()
            self._connection.execute(_INSERT, {**agent_values(new), "row_key": key})
        else:
            key = stored.row_key
            self._connection.execute(_REPLACE, {**agent_values(new), "key": key})
        if before is None or before.selectors != new.selectors:
            if before is not None:
                self._connection.execute(_REMOVE_SELECTORS, {"key": key})
            selectors = [{"row_key": key, "digest": digest_of_selector(one)} for one in new.selectors]
            if selectors:
                self._connection.execute(_INSERT_SELECTOR, selectors)
        self._recorder.changed(EventKind.AGENT, new.spiffe_id.path.encode(), new)

    def remove(self, path: str) -> None:
        """Delete; an unknown path is passed over."""
        self._recorder.writing()
        if self._connection.execute(_REMOVE, {"of": self._digest(path)}).rowcount:
            self._recorder.changed(EventKind.AGENT, path.encode(), None)

    def page(self, wanted: AgentFilter, after: str = "", limit: int = 0) -> Page[AttestedAgent]:
        """Agents in order of their first attestation, beginning after the page token `after`."""
        return page_of(self._connection, agent, _conditions(wanted), after, limit, agent_of, query=query_name(wanted))

    def count(self, wanted: AgentFilter) -> int:
        """How many agents there are."""
        return self._connection.execute(
            select(func.count()).select_from(agent).where(*_conditions(wanted))
        ).scalar_one()

    def all(self) -> Iterator[AttestedAgent]:
        """Every agent, streamed."""
        return map(agent_of, self._connection.execute(_ALL))

    def _digest(self, path: str) -> bytes:
        return digest(f"spiffe://{self._trust_domain.name}{path}")


def _conditions(wanted: AgentFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.attestation_type is not None:
        conditions.append(agent.c.attestation_type == wanted.attestation_type.encode())
    if wanted.selectors is not None:
        given = [digest_of_selector(one) for one in wanted.selectors]
        conditions.append(set_condition(agent, agent_selector, given, wanted.selectors_match))
    if wanted.banned is not None:
        conditions.append(agent.c.serial == b"" if wanted.banned else agent.c.serial != b"")
    if wanted.can_reattest is not None:
        conditions.append(agent.c.can_reattest == wanted.can_reattest)
    if wanted.expires_before is not None:
        conditions.append(agent.c.expires_at < wanted.expires_before)
    return conditions
