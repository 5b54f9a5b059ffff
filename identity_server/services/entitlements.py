"""Which registration entries an agent may have SVIDs for, and how a *no* is confirmed before it leaves.

*Memory may say yes, only the database may say no* (architecture A8): memory may be behind another server's write, and
an agent that is told "not found" gives the identity up. What the database knows and memory does not is Unavailable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from identity_server.domain.access import Caller
from identity_server.domain.audit import CallRefused
from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.state import State
from identity_server.ports import AuditLog, Store, UnitOfWork
from spiffe_core.errors import IdentityError, NotFound, Unavailable

MAX_SHOWN = 255
NOT_YOURS = "entry not found or not authorized"
"""One answer for both, so that nobody learns which entries exist (N-C-15)."""


class Entitlements:
    """Answers from the latest state, and confirms refusals. Belongs to the event loop."""

    def __init__(self, *, store: Store, audit: AuditLog) -> None:
        self._store = store
        self._audit = audit

    def find(self, caller: Caller, entry_id: str) -> EntryRecord | None:
        """The entry, if memory knows that the agent may have it."""
        return self.of(caller).get(entry_id)

    def of(self, caller: Caller) -> Mapping[str, EntryRecord]:
        """All entries that memory knows the agent may have, by id; the answer of this moment."""
        return self._store.state.value.authorised(agent_path(caller))

    async def refusals(self, caller: Caller, entry_ids: Sequence[str], method: str) -> dict[str, IdentityError]:
        """Why each of these entries, which `find` did not give, is not to be had; refusals are audited."""
        agent = agent_path(caller)
        distinct = list(dict.fromkeys(entry_ids))

        def stored(uow: UnitOfWork) -> dict[str, tuple[int, int]]:
            found = uow.entries.many(distinct)
            return {key: (entry.revision_number, entry.created_at) for key, entry in found.items()}

        try:
            known = await self._store.read(stored)
        except IdentityError as error:
            outage = Unavailable("the database cannot be read just now, try again", cause=error.public)
            return dict.fromkeys(distinct, outage)
        state = self._store.state.value
        refusals: dict[str, IdentityError] = {}
        for entry_id in distinct:
            if _behind(state, agent, entry_id, known.get(entry_id)):
                refusals[entry_id] = Unavailable("this entry is about to be known here, try again")
                continue
            refusals[entry_id] = NotFound(NOT_YOURS)
            self.refused(caller, entry_id, method, refusals[entry_id])
        return refusals

    def refused(self, caller: Caller, entry_id: str, method: str, error: IdentityError) -> None:
        """Record that nothing was issued for an entry that was asked for."""
        record = self._store.state.value.entries.get(entry_id)
        event = CallRefused(
            method=method,
            actor=caller.actor,
            entry_id=entry_id[:MAX_SHOWN],
            spiffe_id=f"spiffe://{self._store.state.value.trust_domain}{record.path}" if record is not None else "",
        )
        self._audit.record(event.ended(error))


def agent_path(caller: Caller) -> str:
    """The path of the agent that calls."""
    assert caller.spiffe_id is not None, "the access table lets only agents in here"
    return caller.spiffe_id.path


def _behind(state: State, agent: str, entry_id: str, stored: tuple[int, int] | None) -> bool:
    """True if the database knows the entry in a form this server's memory has not seen, or memory knows by now."""
    if stored is None:
        return False
    record = state.entries.get(entry_id)
    if record is None or (record.revision_number, record.created_at) != stored:
        return True
    return entry_id in state.authorised(agent)
