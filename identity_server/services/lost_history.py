"""Use-case: the database's history is not the one this server knew (eventlog section 2.6; R27, R50).

A backup was restored, or a fail-over lost the last writes. Certificates signed meanwhile are in use, but the bundle may
no longer hold the root they end in, and the journal may not know the authority that signs. Until both are stored again
nothing is signed: the issuer asks the stored bundle for each leaf.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from identity_server.domain.authority import Authority
from identity_server.domain.history import HistoryChange
from identity_server.domain.published import published_ids, tainted_ids, with_published, with_tainted
from identity_server.ports import AuditLog, Store, UnitOfWork
from identity_server.services.audited import audited, changed
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.spiffe_id import TrustDomain


class LostHistory:
    """Stores again what this server cannot do without: its authorities and their places in the trust bundle."""

    def __init__(
        self, *, store: Store, clock: Clock, audit: AuditLog, trust_domain: TrustDomain, server_id: str
    ) -> None:
        self._store, self._clock, self._audit = store, clock, audit
        self._trust_domain, self._server_id = trust_domain, server_id

    async def publish_again(self, change: HistoryChange) -> tuple[str, ...]:
        """Make the journal of this server and the bundle hold what they held before `change`; what was missing.

        Authorities of other servers are theirs to publish. An expired authority is let go.

        Raises:
            Unavailable: the database cannot be written now; call again.
        """
        now = int(self._clock.now().timestamp())
        known = tuple(one for one in change.authorities if one.not_after > now)
        with audited(self._audit, *(changed("publish-again", one) for one in known)):
            return await self._store.execute(lambda uow: self._store_again(uow, known, change.bundle))

    def _store_again(self, uow: UnitOfWork, known: Iterable[Authority], before: TrustBundle | None) -> tuple[str, ...]:
        known = tuple(known)
        journal = uow.authorities.of_server(self._server_id)
        stored = uow.bundles.get(self._trust_domain)
        bundle = stored if stored is not None else TrustBundle(self._trust_domain)
        missing = tuple(one for one in known if one.published_as not in published_ids(bundle, one.kind))
        for one in missing:
            bundle = with_published(bundle, one, _roots(before, one))
        for one in known:
            if one.tainted or (one.anchor_id and one.anchor_id in tainted_ids(before, one.kind)):
                bundle = with_tainted(bundle, one.kind, one.published_as)
        if before is not None and bundle.sequence <= before.sequence and bundle != before:
            bundle = replace(bundle, sequence=before.sequence + 1)  # relying parties never go back to a lower number
        ids = {one.authority_id for one in known}
        for one in journal:
            if one.authority_id not in ids:
                uow.authorities.remove(one.authority_id)
        for one in known:
            uow.authorities.put(one)
        uow.bundles.put(bundle)
        return tuple(one.authority_id for one in missing)


def _roots(before: TrustBundle | None, authority: Authority) -> tuple[bytes, ...]:
    """The upstream roots by which an authority was published; none if it is its own root."""
    if before is None or not authority.anchor_id:
        return ()
    return tuple(one.der for one in before.x509_authorities if one.key_id == authority.anchor_id)
