"""Use-cases: keep the bundles of other trust domains, by hand.

Batches are answered item by item, and each item stands alone: one that is refused changes nothing for the others.
Later items see what earlier ones did. Every write is audited before it takes effect.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from identity_server.domain.access import Caller
from identity_server.domain.audit import BundleChanged
from identity_server.domain.federation import DeleteMode, sharing_keys
from identity_server.domain.listing import EntryFilter, Match
from identity_server.ports import AuditLog, Store, UnitOfWork
from identity_server.services.audited import audited_batch
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import Conflict, IdentityError, NotFound, PreconditionFailed
from spiffe_core.spiffe_id import TrustDomain

log = logging.getLogger(__name__)

SLICE = 50
"""So many bundles go into one command; a longer batch takes several, so that other writers get their turn."""
DELETE_SLICE = 500
"""The same of bundles that go: what they hold is not read, and a few statements do for all."""
ENTRY_SLICE = 500
"""So many entries are changed in one step when a bundle goes."""
MAX_SHOWN = 255
MOST_NAMED = 3
"""So many trust domains that share a key are named in one line."""

Outcome = TrustBundle | IdentityError
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BundleEdit:
    """One update: whose bundle, and what becomes of it. `edit` is pure and raises InvalidBundle."""

    trust_domain: TrustDomain
    edit: Callable[[TrustBundle], TrustBundle]


class FederatedBundles:
    """Keeps the bundles of foreign trust domains. That none of them is our own is the caller's care."""

    def __init__(self, *, store: Store, audit: AuditLog) -> None:
        self._store = store
        self._audit = audit

    async def create(self, caller: Caller, bundles: Sequence[TrustBundle]) -> list[Outcome]:
        """Store new bundles; Conflict for a trust domain that has one."""
        outcomes: list[Outcome] = []
        for start in range(0, len(bundles), SLICE):
            part = bundles[start : start + SLICE]
            events = [_change(caller, "create", one.trust_domain) for one in part]
            act = partial(self._store.execute, partial(_each, _create, part))
            outcomes += self._looked_at(await audited_batch(self._audit, events, act))
        return outcomes

    async def put(self, caller: Caller, bundles: Sequence[TrustBundle]) -> list[Outcome]:
        """Store bundles, in place of those that are there."""
        outcomes: list[Outcome] = []
        for start in range(0, len(bundles), SLICE):
            part = bundles[start : start + SLICE]
            events = [_change(caller, "set", one.trust_domain) for one in part]
            act = partial(self._store.execute, partial(_each, _put, part))
            outcomes += self._looked_at(await audited_batch(self._audit, events, act))
        return outcomes

    async def update(self, caller: Caller, edits: Sequence[BundleEdit]) -> list[Outcome]:
        """Edit bundles; NotFound for a trust domain without one."""
        outcomes: list[Outcome] = []
        for start in range(0, len(edits), SLICE):
            part = edits[start : start + SLICE]
            events = [_change(caller, "update", one.trust_domain) for one in part]
            act = partial(self._store.execute, partial(_each, _update, part))
            outcomes += self._looked_at(await audited_batch(self._audit, events, act))
        return outcomes

    async def delete(
        self, caller: Caller, trust_domains: Sequence[TrustDomain], mode: DeleteMode
    ) -> list[IdentityError | None]:
        """Delete bundles; None for each that is gone. `mode` says what becomes of entries that federate with them."""
        outcomes: list[IdentityError | None] = []
        for part in await self._parts(trust_domains, mode):
            events = [_change(caller, "delete", one, mode.name.lower()) for one in part]
            act = partial(self._store.execute, partial(_delete_all, part, mode))
            outcomes += await audited_batch(self._audit, events, act)
        return outcomes

    async def _parts(self, trust_domains: Sequence[TrustDomain], mode: DeleteMode) -> list[Sequence[TrustDomain]]:
        """What goes into one command: so much that other writers get their turn."""
        if mode is DeleteMode.RESTRICT or not trust_domains:
            writes = {}
        else:
            writes = await self._store.read(lambda uow: uow.entries.federating(trust_domains))
        return in_parts(trust_domains, writes)

    def _looked_at(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        known = self._store.state.value.bundles
        if known is not None:
            warn_of_shared_keys([one for one in outcomes if isinstance(one, TrustBundle)], known.all())
        return outcomes

    def refused(self, caller: Caller, change: str, name: str, error: IdentityError) -> None:
        """Note a change that was refused before it became one, because it could not be read."""
        event = BundleChanged(change=change, trust_domain=name[:MAX_SHOWN], actor=caller.actor)
        self._audit.record(event.ended(error))


def warn_of_shared_keys(bundles: Sequence[TrustBundle], known: Iterable[TrustBundle]) -> None:
    """Say that one key speaks for several trust domains (TDB-28). The others' owners alone can end it.

    One line a bundle, however many share the key: 500 with the same would else be a quarter of a million lines.
    """
    for trust_domain, others in sharing_keys(bundles, known).items():
        more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        log.warning(
            "an authority's key of %s is one of %s%s too: whoever holds it speaks for each; ask who made the bundle",
            trust_domain,
            ", ".join(map(str, others[:MOST_NAMED])),
            more,
        )


def _change(caller: Caller, change: str, trust_domain: TrustDomain, mode: str = "") -> BundleChanged:
    return BundleChanged(change=change, trust_domain=str(trust_domain), actor=caller.actor, mode=mode)


def _each(act: Callable[[UnitOfWork, T], Outcome], items: Sequence[T], uow: UnitOfWork) -> list[Outcome]:
    return [act(uow, item) for item in items]


def _create(uow: UnitOfWork, bundle: TrustBundle) -> Outcome:
    if uow.bundles.get(bundle.trust_domain) is not None:
        return Conflict("bundle already exists")
    uow.bundles.put(bundle)
    return bundle


def _put(uow: UnitOfWork, bundle: TrustBundle) -> Outcome:
    uow.bundles.put(bundle)
    return bundle


def _update(uow: UnitOfWork, change: BundleEdit) -> Outcome:
    before = uow.bundles.get(change.trust_domain)
    if before is None:
        return NotFound("bundle not found")
    try:
        after = change.edit(before)
    except IdentityError as error:
        return error
    uow.bundles.put(after)
    return after


def in_parts(trust_domains: Sequence[TrustDomain], writes: Mapping[TrustDomain, int]) -> list[Sequence[TrustDomain]]:
    """In the given order, at most `DELETE_SLICE` in a part.

    Not more than `ENTRY_SLICE` `writes`, unless one alone has more.
    """
    parts: list[Sequence[TrustDomain]] = []
    part: list[TrustDomain] = []
    cost = 0
    for one in trust_domains:
        more = writes.get(one, 0)
        if part and (len(part) == DELETE_SLICE or cost + more > ENTRY_SLICE):
            parts.append(part)
            part, cost = [], 0
        part.append(one)
        cost += more
    return [*parts, part] if part else parts


def _delete_all(trust_domains: Sequence[TrustDomain], mode: DeleteMode, uow: UnitOfWork) -> list[IdentityError | None]:
    """What became of each; one that is named twice is gone the second time."""
    stored, federating = uow.bundles.stored(trust_domains), uow.entries.federating(trust_domains)
    gone: dict[TrustDomain, None] = {}
    outcomes: list[IdentityError | None] = []
    for one in trust_domains:
        count = federating.get(one, 0)
        if one not in stored or one in gone:
            outcomes.append(NotFound("bundle not found"))
        elif count and mode is DeleteMode.RESTRICT:
            outcomes.append(_in_use(count))
        else:
            if count:
                _release(uow, one, mode)
            gone[one] = None
            outcomes.append(None)
    uow.bundles.remove(list(gone))
    return outcomes


def _in_use(count: int) -> IdentityError:
    return PreconditionFailed(
        f"failed to delete federated bundle: cannot delete bundle; federated with {count} registration entries. "
        "Change those first, or choose the mode dissociate or delete"
    )


def _release(uow: UnitOfWork, trust_domain: TrustDomain, mode: DeleteMode) -> None:
    """Have no entry federate with it any more."""
    federating = EntryFilter(federates_with=frozenset({trust_domain}), federates_with_match=Match.ANY)
    while entries := uow.entries.page(federating, "", ENTRY_SLICE).items:
        if mode is DeleteMode.DELETE:
            uow.entries.remove([entry.id for entry in entries])
            continue
        uow.entries.replace(
            [
                replace(
                    entry,
                    federates_with=tuple(name for name in entry.federates_with if name != trust_domain),
                    revision_number=entry.revision_number + 1,  # by which agents notice
                )
                for entry in entries
            ]
        )
