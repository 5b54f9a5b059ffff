"""Use-cases: federation relationships, which say where the bundles of other trust domains are fetched.

A relationship shows the bundle that is stored for its trust domain. Creating or updating one may store a bundle as
well; deleting one leaves the bundle where it is (spire_features section 19.3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from identity_server.domain.access import Caller
from identity_server.domain.audit import RelationshipChanged
from identity_server.domain.federation import EndpointProfile, FederationRelationship
from identity_server.domain.listing import Page
from identity_server.ports import AuditLog, Store, UnitOfWork
from identity_server.services.audited import audited_batch
from identity_server.services.bundle_refresh import BundleRefresh
from identity_server.services.registration import page_limit
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import IdentityError, Internal, NotFound
from spiffe_core.spiffe_id import TrustDomain

log = logging.getLogger(__name__)

SLICE = 50
"""So many relationships go into one command; a longer batch takes several, so that other writers get their turn."""
MAX_SHOWN = 255


@dataclass(frozen=True, slots=True)
class Federated:
    """A relationship, and the bundle of its trust domain: what to store, or what is stored."""

    relationship: FederationRelationship
    bundle: TrustBundle | None = None


@dataclass(frozen=True, slots=True)
class RelationshipEdit:
    """One update: of which relationship, what becomes of it, and a bundle to store. `edit` is pure and may refuse."""

    trust_domain: TrustDomain
    edit: Callable[[FederationRelationship], FederationRelationship]
    bundle: TrustBundle | None = None


Outcome = Federated | IdentityError


class Federation:
    """Keeps the federation relationships."""

    def __init__(self, *, store: Store, audit: AuditLog, refresh: BundleRefresh) -> None:
        self._store = store
        self._audit = audit
        self._refresh = refresh

    async def get(self, trust_domain: TrustDomain) -> Federated:
        """One relationship."""
        found = await self._store.read(lambda uow: _known(uow, uow.relationships.get(trust_domain)))
        if found is None:
            raise NotFound("federation relationship does not exist")
        return found

    async def page(self, token: str, size: int) -> Page[Federated]:
        """A page of relationships; size 0 asks for all of them."""
        limit = page_limit(size)

        def query(uow: UnitOfWork) -> Page[Federated]:
            page = uow.relationships.page(token, limit)
            return Page(tuple(Federated(one, uow.bundles.get(one.trust_domain)) for one in page), page.next_token)

        return await self._store.read(query)

    async def create(self, caller: Caller, wanted: Sequence[Federated]) -> list[Outcome]:
        """Store new relationships, and the bundles that come with them."""
        outcomes: list[Outcome] = []
        for start in range(0, len(wanted), SLICE):
            part = wanted[start : start + SLICE]
            events = [_change(caller, "create", one.relationship.trust_domain, one.relationship) for one in part]
            act = partial(self._store.execute, partial(_create_all, part))
            outcomes += await audited_batch(self._audit, events, act, _described)
        self._warn(outcomes)
        return outcomes

    async def update(self, caller: Caller, edits: Sequence[RelationshipEdit]) -> list[Outcome]:
        """Edit relationships, and store the bundles that come with them."""
        outcomes: list[Outcome] = []
        for start in range(0, len(edits), SLICE):
            part = edits[start : start + SLICE]
            events = [_change(caller, "update", one.trust_domain) for one in part]
            act = partial(self._store.execute, partial(_update_all, part))
            outcomes += await audited_batch(self._audit, events, act, _described)
        self._warn(outcomes)
        return outcomes

    async def delete(self, caller: Caller, trust_domains: Sequence[TrustDomain]) -> list[IdentityError | None]:
        """Delete relationships; None for each that is gone. Their bundles stay."""
        if not trust_domains:
            return []
        events = [_change(caller, "delete", trust_domain) for trust_domain in trust_domains]
        act = partial(self._store.execute, partial(_delete_all, trust_domains))
        return await audited_batch(self._audit, events, act)

    def refused(self, caller: Caller, change: str, name: str, error: IdentityError) -> None:
        """Note a change that was refused before it became one, because it could not be read."""
        event = RelationshipChanged(change=change, trust_domain=name[:MAX_SHOWN], actor=caller.actor)
        self._audit.record(event.ended(error))

    async def refresh(self, trust_domain: TrustDomain) -> None:
        """Fetch the bundle of a relationship's trust domain now.

        Raises:
            NotFound: there is no relationship with it.
            Unavailable: the bundle could not be fetched or stored; says why.
        """
        await self._refresh.refresh(trust_domain)

    def _warn(self, outcomes: Sequence[Outcome]) -> None:
        """An endpoint that shows an SVID can only be believed with the bundle of that SVID's trust domain."""
        for outcome in outcomes:
            if isinstance(outcome, IdentityError) or outcome.relationship.profile is not EndpointProfile.HTTPS_SPIFFE:
                continue
            who = outcome.relationship.endpoint_spiffe_id
            if who is None:
                continue
            bundles = self._store.state.value.bundles
            if bundles is None or bundles.get(who.trust_domain) is None:
                log.warning(
                    "the bundle endpoint of %s is to show %s, but no bundle of %s is stored: set it with `bundle set`",
                    outcome.relationship.trust_domain,
                    who,
                    who.trust_domain,
                )


def _change(
    caller: Caller, change: str, trust_domain: TrustDomain, given: FederationRelationship | None = None
) -> RelationshipChanged:
    return RelationshipChanged(
        change=change,
        trust_domain=str(trust_domain),
        actor=caller.actor,
        endpoint_url=given.endpoint_url if given is not None else "",
        endpoint_spiffe_id=str(given.endpoint_spiffe_id or "") if given is not None else "",
    )


def _described(event: RelationshipChanged, outcome: Outcome) -> RelationshipChanged:
    """The event with the relationship as it was stored."""
    if isinstance(outcome, IdentityError):
        return event
    stored = outcome.relationship
    return replace(event, endpoint_url=stored.endpoint_url, endpoint_spiffe_id=str(stored.endpoint_spiffe_id or ""))


def _known(uow: UnitOfWork, relationship: FederationRelationship | None) -> Federated | None:
    return None if relationship is None else Federated(relationship, uow.bundles.get(relationship.trust_domain))


def _create_all(wanted: Sequence[Federated], uow: UnitOfWork) -> list[Outcome]:
    return [_create(uow, one) for one in wanted]


def _create(uow: UnitOfWork, wanted: Federated) -> Outcome:
    name = wanted.relationship.trust_domain
    if uow.relationships.get(name) is not None:
        return Internal(
            f"failed to create federation relationship: there is one with trust domain {name} already; update that"
        )
    return _stored(uow, wanted.relationship, wanted.bundle)


def _update_all(edits: Sequence[RelationshipEdit], uow: UnitOfWork) -> list[Outcome]:
    return [_update(uow, one) for one in edits]


def _update(uow: UnitOfWork, change: RelationshipEdit) -> Outcome:
    before = uow.relationships.get(change.trust_domain)
    if before is None:
        return Internal(
            "failed to update federation relationship: unable to fetch federation relationship: there is none with "
            f"trust domain {change.trust_domain}; create it"
        )
    try:
        after = change.edit(before)
    except IdentityError as error:
        return error
    return _stored(uow, after, change.bundle)


def _stored(uow: UnitOfWork, relationship: FederationRelationship, bundle: TrustBundle | None) -> Federated:
    if bundle is not None:
        uow.bundles.put(bundle)
    uow.relationships.put(relationship)
    return Federated(relationship, bundle or uow.bundles.get(relationship.trust_domain))


def _delete_all(trust_domains: Sequence[TrustDomain], uow: UnitOfWork) -> list[IdentityError | None]:
    outcomes: list[IdentityError | None] = []
    for trust_domain in trust_domains:
        known = uow.relationships.get(trust_domain) is not None
        if known:
            uow.relationships.remove(trust_domain)
        outcomes.append(None if known else NotFound("federation relationship not found"))
    return outcomes
