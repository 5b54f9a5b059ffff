"""Use-cases: create, update, delete and look up registration entries.

Batches are answered item by item, and each item stands alone: one that is refused changes nothing for the others.
Up to `SLICE` items share one command. Administrative writes are audited before they take effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from identity_server.domain.access import Caller
from identity_server.domain.audit import EntryChanged
from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.listing import EntryFilter, Page
from identity_server.ports import AuditLog, Store, UnitOfWork
from identity_server.services.audited import audited, audited_batch
from spiffe_core.clock import Clock
from spiffe_core.entry import RegistrationEntry, similarity
from spiffe_core.errors import Conflict, IdentityError, InvalidRequest, NotFound

SLICE = 500
"""So many items go into one command; a longer batch takes several, so that other writers get their turn."""
PAGE_LIMIT = 1000
"""A page holds at most so many records, whatever was asked for (S58)."""
MAX_ID_BYTES = 255

Outcome = RegistrationEntry | IdentityError
Edit = Callable[[RegistrationEntry], RegistrationEntry]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """One update: which entry, and what becomes of it. `edit` is pure and raises InvalidEntry."""

    entry_id: str
    edit: Edit


class Registration:
    """Keeps the registration entries."""

    def __init__(self, *, store: Store, clock: Clock, audit: AuditLog) -> None:
        self._store = store
        self._clock = clock
        self._audit = audit

    async def create(self, caller: Caller, entries: Sequence[RegistrationEntry]) -> list[Outcome]:
        """Store new entries. A similar entry, or a taken id, answers Conflict; `existing` is the similar entry."""
        now = int(self._clock.now().timestamp())
        stamped = [entry.stamped(revision_number=0, created_at=now) for entry in entries]
        outcomes: list[Outcome] = []
        for part in _slices(stamped):
            events = [_creation(caller, entry) for entry in part]
            act = partial(self._store.execute, partial(_create, entries=part))
            outcomes += await audited_batch(self._audit, events, act)
        return outcomes

    async def update(self, caller: Caller, changes: Sequence[Change]) -> list[Outcome]:
        """Edit existing entries; each gets revision_number + 1 and keeps its id and time of creation."""
        outcomes: list[Outcome] = []
        for part in _without_repeats(changes):
            events = [self._known(_change(caller, "update", change.entry_id)) for change in part]
            act = partial(self._store.execute, partial(_update, changes=part))
            outcomes += await audited_batch(self._audit, events, act, _described)
        return outcomes

    async def delete(self, caller: Caller, ids: Sequence[str]) -> list[IdentityError | None]:
        """Delete entries; None for each that is gone, NotFound for each that never was."""
        outcomes: list[IdentityError | None] = []
        for part in _slices(ids):
            events = [self._known(_change(caller, "delete", entry_id)) for entry_id in part]
            act = partial(self._store.execute, partial(_delete, ids=part))
            outcomes += await audited_batch(self._audit, events, act)
        return outcomes

    def refused(self, caller: Caller, change: str, entry_id: str, error: IdentityError) -> None:
        """Note a change that was refused before it became one, because it could not be read."""
        self._audit.record(_change(caller, change, entry_id).ended(error))

    async def get(self, entry_id: str) -> RegistrationEntry:
        """One entry by id."""
        if not entry_id:
            raise InvalidRequest("missing ID", field="id")
        found = await self._store.read(lambda uow: uow.entries.get(entry_id)) if _plausible(entry_id) else None
        if found is None:
            raise NotFound("entry not found")
        return found

    async def page(self, wanted: EntryFilter, token: str, size: int) -> Page[RegistrationEntry]:
        """A page of entries; size 0 asks for all of them."""
        limit = page_limit(size)
        return await self._store.read(lambda uow: uow.entries.page(wanted, token, limit))

    async def count(self, wanted: EntryFilter) -> int:
        """How many entries there are."""
        return await self._store.read(lambda uow: uow.entries.count(wanted))

    def authorised(self, caller: Caller) -> Mapping[str, EntryRecord]:
        """What the calling agent is entitled to, by the latest state."""
        assert caller.spiffe_id is not None, "the access table lets only agents in here"
        return self._store.state.value.authorised(caller.spiffe_id.path)

    async def prune(self, limit: int = SLICE) -> int:
        """Delete entries past their `expires_at`; how many were deleted (spire_features section 15.1)."""
        now = int(self._clock.now().timestamp())
        expired = await self._store.read(lambda uow: uow.entries.expired(now, limit))
        if not expired:
            return 0
        events = [_described(EntryChanged(change="expire", entry_id=one.id, actor="server"), one) for one in expired]

        def remove(uow: UnitOfWork) -> int:
            gone = [entry.id for entry in uow.entries.expired(now, limit)]
            uow.entries.remove(gone)
            return len(gone)

        with audited(self._audit, *events):
            return await self._store.execute(remove)

    def _known(self, event: EntryChanged) -> EntryChanged:
        """The event with what memory knows of the entry as it is before the change."""
        state = self._store.state.value
        record = state.entries.get(event.entry_id)
        if record is None:
            return event
        return replace(
            event,
            spiffe_id=f"spiffe://{state.trust_domain}{record.path}",
            parent_id=f"spiffe://{state.trust_domain}{record.parent}",
            revision_number=record.revision_number,
        )


def _change(caller: Caller, change: str, entry_id: str) -> EntryChanged:
    return EntryChanged(change=change, entry_id=entry_id[:MAX_ID_BYTES], actor=caller.actor)


def _creation(caller: Caller, entry: RegistrationEntry) -> EntryChanged:
    return EntryChanged(
        change="create",
        entry_id=entry.id,
        actor=caller.actor,
        spiffe_id=str(entry.spiffe_id),
        parent_id=str(entry.parent_id),
        revision_number=entry.revision_number,
    )


def _described(event: EntryChanged, outcome: Outcome) -> EntryChanged:
    """The event with the entry as it was stored."""
    if isinstance(outcome, IdentityError):
        return event
    return replace(
        event,
        spiffe_id=str(outcome.spiffe_id),
        parent_id=str(outcome.parent_id),
        revision_number=outcome.revision_number,
    )


def page_limit(size: int) -> int:
    """The page size in force: 0 asks for everything, a large one is capped (S58), a negative one is refused."""
    if size < 0:
        raise InvalidRequest("page_size must not be negative; 0 asks for everything", field="page_size")
    return min(size, PAGE_LIMIT)


def _create(uow: UnitOfWork, entries: Sequence[RegistrationEntry]) -> list[Outcome]:
    """Decide for each item, then write the good ones. Later items see earlier ones of the same batch."""
    taken = uow.entries.many([entry.id for entry in entries])
    similar = uow.entries.similar(entries)
    federated = _Federated(uow)
    outcomes: list[Outcome] = []
    good: list[RegistrationEntry] = []
    for entry in entries:
        digest = similarity(entry)
        twin = similar.get(digest)
        if twin is not None:
            outcomes.append(Conflict("similar entry already exists", existing=twin))
            continue
        if entry.id in taken:
            outcomes.append(Conflict("entry with this id already exists", existing=taken[entry.id]))
            continue
        missing = federated.missing(entry)
        if missing is not None:
            outcomes.append(missing)
            continue
        similar[digest] = taken[entry.id] = entry
        good.append(entry)
        outcomes.append(entry)
    if good:
        uow.entries.add(good)
    return outcomes


def _update(uow: UnitOfWork, changes: Sequence[Change]) -> list[Outcome]:
    """Decide for each item, then write the good ones. No entry is named twice in `changes`."""
    present = uow.entries.many([change.entry_id for change in changes if _plausible(change.entry_id)])
    federated = _Federated(uow)
    drafts: list[Outcome] = []
    for change in changes:
        try:
            drafts.append(_edited(present, change, federated))
        except IdentityError as error:
            drafts.append(error)
    owners = uow.entries.similar([draft for draft in drafts if isinstance(draft, RegistrationEntry)])
    outcomes: list[Outcome] = []
    for draft in drafts:
        outcome = draft
        if isinstance(draft, RegistrationEntry):
            owner = owners.setdefault(similarity(draft), draft)
            if owner.id != draft.id:
                outcome = Conflict("similar entry already exists", existing=owner)
        outcomes.append(outcome)
    good = [outcome for outcome in outcomes if isinstance(outcome, RegistrationEntry)]
    if good:
        uow.entries.replace(good)
    return outcomes


def _edited(present: dict[str, RegistrationEntry], change: Change, federated: _Federated) -> RegistrationEntry:
    if not change.entry_id:
        raise InvalidRequest("failed to convert entry: missing ID", field="entries.id")
    before = present.get(change.entry_id)
    if before is None:
        raise NotFound("failed to update entry: entry not found")
    draft = change.edit(before)
    missing = federated.missing(draft)
    if missing is not None:
        raise missing
    return replace(draft, id=before.id, revision_number=before.revision_number + 1, created_at=before.created_at)


def _delete(uow: UnitOfWork, ids: Sequence[str]) -> list[IdentityError | None]:
    present = set(uow.entries.many([entry_id for entry_id in ids if _plausible(entry_id)]))
    outcomes: list[IdentityError | None] = []
    gone: list[str] = []
    for entry_id in ids:
        if not entry_id:
            outcomes.append(InvalidRequest("missing entry ID", field="ids"))
        elif entry_id not in present:
            outcomes.append(NotFound("entry not found"))
        else:
            present.remove(entry_id)
            gone.append(entry_id)
            outcomes.append(None)
    if gone:
        uow.entries.remove(gone)
    return outcomes


class _Federated:
    """Which trust domains have a bundle; each is looked up once per command."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._known: dict[str, bool] = {}

    def missing(self, entry: RegistrationEntry) -> NotFound | None:
        """The refusal for an entry that federates with a trust domain without a bundle (N-C-24)."""
        for name in entry.federates_with:
            key = str(name)
            if key not in self._known:
                self._known[key] = self._uow.bundles.get(name) is not None
            if not self._known[key]:
                return NotFound(f'federates_with: unable to find federated bundle "{key}"; add its bundle first')
        return None


def _plausible(entry_id: str) -> bool:
    """Ids that cannot be in the database are not asked for."""
    return 0 < len(entry_id) <= MAX_ID_BYTES and "\0" not in entry_id


def _slices(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + SLICE] for start in range(0, len(items), SLICE)]


def _without_repeats(changes: Sequence[Change]) -> list[list[Change]]:
    """Slices in which no entry is named twice: a second change of an entry builds on what the first one left."""
    parts: list[list[Change]] = []
    seen: set[str] = set()
    for change in changes:
        if not parts or len(parts[-1]) >= SLICE or change.entry_id in seen:
            parts.append([])
            seen.clear()
        parts[-1].append(change)
        seen.add(change.entry_id)
    return parts
