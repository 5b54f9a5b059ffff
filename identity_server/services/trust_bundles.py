"""Use-cases: the trust bundle of our own trust domain, those of others as they are read, and how many there are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from identity_server.domain.access import Caller
from identity_server.domain.audit import BundleChanged
from identity_server.domain.federation import untainted, with_published_key
from identity_server.domain.listing import Page
from identity_server.ports import AuditLog, Store, UnitOfWork, UpstreamAuthority
from identity_server.services.audited import audited
from identity_server.services.registration import page_limit
from identity_server.services.upstream_lines import publish_upstream, publish_wit_upstream
from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority, X509Authority
from spiffe_core.errors import InvalidRequest, NotFound, Unimplemented
from spiffe_core.spiffe_id import TrustDomain

TokenAuthority = TypeVar("TokenAuthority", bound=JwtAuthority | WitAuthority)


class TrustBundles:
    """Reads from the latest state; adds authorities that others sign with."""

    def __init__(
        self,
        *,
        store: Store,
        audit: AuditLog,
        trust_domain: TrustDomain,
        upstream: UpstreamAuthority | None = None,
        wit: bool = False,
    ) -> None:
        self._store = store
        self._wit = wit
        self._upstream = upstream
        self._audit = audit
        self._trust_domain = trust_domain

    def own(self) -> TrustBundle:
        """The bundle of the server's own trust domain."""
        bundles = self._store.state.value.bundles
        if bundles is None:
            raise NotFound("bundle not found")
        return bundles.own

    async def count(self) -> int:
        """How many bundles are stored, our own included."""
        return await self._store.read(lambda uow: uow.bundles.count())

    async def federated(self, trust_domain: TrustDomain) -> TrustBundle:
        """The bundle of another trust domain.

        Memory may say yes; that there is none is confirmed by the database (architecture A8), since an agent that
        hears it stops trusting that trust domain.
        """
        if trust_domain == self._trust_domain:
            raise InvalidRequest(
                "getting a federated bundle for the server's own trust domain is not allowed", field="trust_domain"
            )
        bundles = self._store.state.value.bundles
        found = bundles.get(trust_domain) if bundles is not None else None
        if found is None:
            found = await self._store.read(lambda uow: uow.bundles.get(trust_domain))
        if found is None:
            raise NotFound("bundle not found")
        return found

    async def page(self, token: str, size: int) -> Page[TrustBundle]:
        """A page of the bundles of other trust domains; size 0 asks for all of them."""
        limit = page_limit(size)
        return await self._store.read(lambda uow: uow.bundles.page(self._trust_domain, token, limit))

    async def append(
        self, caller: Caller, x509_authorities: Sequence[X509Authority], jwt_authorities: Sequence[JwtAuthority]
    ) -> TrustBundle:
        """Add authorities to our own bundle: from then on what they sign is trusted. Those it has are left as they are.

        Raises:
            InvalidRequest: there is nothing to add, or the bundle would become too large.
            Conflict: a key ID stands for another key.
        """
        if not x509_authorities and not jwt_authorities:
            raise InvalidRequest("no authorities to append", field="x509_authorities")
        given = untainted(TrustBundle(self._trust_domain, tuple(x509_authorities), tuple(jwt_authorities)))
        return await self._add(caller, "append", given)

    async def publish_jwt_authority(self, caller: Caller, key: JwtAuthority) -> tuple[JwtAuthority, ...]:
        """Add the key with which a downstream server signs JWT-SVIDs; all JWT keys of the trust domain.

        Where an upstream publishes JWT keys it gets the key first, and our bundle all that the upstream has then.

        Raises:
            Conflict: the key ID stands for another key.
            Unavailable: the upstream cannot publish it now.
        """
        given = untainted(TrustBundle(self._trust_domain, jwt_authorities=(key,)))
        keys = await self._with_those_above(given.jwt_authorities[0], publish_upstream)
        given = untainted(TrustBundle(self._trust_domain, jwt_authorities=keys))
        return (await self._add(caller, "publish", given)).jwt_authorities

    async def publish_wit_authority(
        self, caller: Caller, given_key: Callable[[], WitAuthority]
    ) -> tuple[WitAuthority, ...]:
        """The same for the key with which a downstream server signs WIT-SVIDs; all WIT keys of the trust domain.

        `given_key` reads it once that matters.

        Raises:
            Unimplemented: WIT-SVIDs are switched off.
            Conflict, Unavailable: as for a JWT key.
        """
        if not self._wit:
            raise Unimplemented("WIT functionality is disabled")
        given = untainted(TrustBundle(self._trust_domain, wit_authorities=(given_key(),)))
        keys = await self._with_those_above(given.wit_authorities[0], publish_wit_upstream)
        given = untainted(TrustBundle(self._trust_domain, wit_authorities=keys))
        return (await self._add(caller, "publish", given)).wit_authorities

    async def _with_those_above(
        self,
        key: TokenAuthority,
        publish: Callable[[UpstreamAuthority, TokenAuthority], Awaitable[Sequence[TokenAuthority]]],
    ) -> tuple[TokenAuthority, ...]:
        """The key, and all that the upstream has once it has been given it; the key alone where none publishes any."""
        if self._upstream is None:
            return (key,)
        try:
            above = await publish(self._upstream, key)
        except Unimplemented:
            return (key,)
        return tuple({one.key_id: one for one in (*above, key)}.values())

    async def _add(self, caller: Caller, change: str, given: TrustBundle) -> TrustBundle:
        """Our bundle with what is given; the audit line stands before it does."""
        with audited(self._audit, self._change(caller, change, given)):
            return await self._store.execute(lambda uow: _append(uow, given))

    def _change(self, caller: Caller, change: str, given: TrustBundle) -> BundleChanged:
        ids = [one.key_id for one in given.x509_authorities] + [one.key_id for one in given.jwt_authorities]
        ids += [one.key_id for one in given.wit_authorities]
        return BundleChanged(
            change=change, trust_domain=str(self._trust_domain), actor=caller.actor, authority_ids=" ".join(ids)
        )


def _append(uow: UnitOfWork, given: TrustBundle) -> TrustBundle:
    before = uow.bundles.get(given.trust_domain)
    if before is None:
        raise NotFound("bundle not found")
    after = before
    for authority in given.x509_authorities:
        after = after.with_x509_authority(authority.der)
    published: tuple[JwtAuthority | WitAuthority, ...] = (*given.jwt_authorities, *given.wit_authorities)
    for key in published:
        after = with_published_key(after, key)
    if after is before:
        return before
    after = replace(after, sequence=before.sequence + 1)  # one change, however many authorities came with it
    uow.bundles.put(after)
    return after
