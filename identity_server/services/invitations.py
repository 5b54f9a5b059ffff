"""Use-cases: invite another trust domain to federate, and accept an invitation (`domain.invitation`).

Accepting is two calls, so that a person sees the keys before they are trusted: `preview` fetches and tells, `accept`
fetches again and stores only what was shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from identity_server.domain.access import Caller
from identity_server.domain.audit import RelationshipChanged
from identity_server.domain.federation import EndpointProfile, FederationRelationship
from identity_server.domain.invitation import (
    DEFAULT_LIFE,
    Invitation,
    pins_of,
    read_invitation,
    require_signer,
    write_invitation,
)
from identity_server.ports import AuditLog, BundleFetcher, Store, UnitOfWork
from identity_server.services.audited import audited
from identity_server.services.bundle_refresh import BundleRefresh
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import LoadedBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import from_pkcs8
from spiffe_core.errors import Conflict, InvalidRequest, PreconditionFailed, Unavailable
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire.tls import TlsIdentity


@dataclass(frozen=True, slots=True)
class OwnEndpoint:
    """Where others fetch our bundle, as far as the configuration says. The URL may be missing. `served`: by us."""

    url: str = ""
    profile: EndpointProfile = EndpointProfile.HTTPS_SPIFFE
    served: bool = False


@dataclass(frozen=True, slots=True)
class Invited:
    """An invitation of ours, when it ends, and what may keep others from accepting it."""

    line: str
    expires_at: datetime
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """What an invitation offers: read, fetched and found to be what the inviter pinned."""

    invitation: Invitation
    loaded: LoadedBundle


class Invitations:
    """`identity` is the server's own X509-SVID, with which invitations are signed."""

    def __init__(
        self,
        *,
        store: Store,
        audit: AuditLog,
        clock: Clock,
        fetcher: BundleFetcher,
        refresh: BundleRefresh,
        identity: Callable[[], TlsIdentity],
        own_id: SpiffeId,
        endpoint: OwnEndpoint,
    ) -> None:
        self._store, self._audit, self._clock = store, audit, clock
        self._fetcher, self._refresh = fetcher, refresh
        self._identity, self._own_id, self._endpoint = identity, own_id, endpoint

    @property
    def _own(self) -> TrustDomain:
        return self._own_id.trust_domain

    def invite(self, caller: Caller, url: str = "", profile: str = "", life: timedelta = DEFAULT_LIFE) -> Invited:
        """An invitation to federate with us.

        Raises:
            InvalidRequest: nobody said where our bundle endpoint is.
            Unavailable: there is no bundle, or no certificate to sign with, yet.
        """
        bundles = self._store.state.value.bundles
        if bundles is None:
            raise Unavailable("the server has no trust bundle yet")
        relationship, identity, now = self._described(url, profile), self._identity(), self._clock.now()
        line = write_invitation(
            relationship,
            bundles.own,
            now=now,
            life=life,
            chain=identity.chain,
            key=from_pkcs8(identity.key),
        )
        self._audit.record(_event("invite", caller, relationship).ended())
        return Invited(line, now + life, self._doubts(relationship.endpoint_url))

    async def preview(self, line: str) -> Offer:
        """What an invitation offers. Nothing is stored.

        Raises:
            InvalidRequest: the line cannot be used.
            Unavailable: the bundle cannot be fetched, or is not the one that the line names.
        """
        invitation = read_invitation(line, now=self._clock.now(), own=self._own)
        loaded = await self._fetcher.fetch_pinned(invitation.relationship, invitation.pins)
        require_signer(invitation, loaded.bundle)
        return Offer(invitation, loaded)

    async def accept(self, caller: Caller, line: str, shown: frozenset[str]) -> Offer:
        """Store the relationship and the bundle that an invitation offers, if its keys are those that were `shown`.

        A relationship that is there already is left as it is, and its bundle is replaced, also by one with an older
        sequence number: that is the way back for a peer that was restored from a backup.

        Raises:
            PreconditionFailed: the keys are others by now.
            Conflict: there is another relationship with this trust domain.
        """
        offer = await self.preview(line)
        relationship, bundle = offer.invitation.relationship, offer.loaded.bundle
        if pins_of(bundle) != shown:
            raise PreconditionFailed(
                "the endpoint serves other keys than those that were shown; look at the invitation again"
            )
        configured = self._refresh.static.get(relationship.trust_domain)
        with audited(self._audit, _event("accept", caller, relationship)):
            if configured is not None and configured != relationship:
                raise _conflict(relationship, "the configuration file")
            await self._store.execute(partial(_accepted, relationship=relationship, bundle=bundle))
        self._refresh.accepted(relationship.trust_domain, offer.loaded.warnings)
        return offer

    def _doubts(self, url: str) -> tuple[str, ...]:
        if self._endpoint.served:
            return ()
        text = (
            f"this server has no bundle endpoint: unless something else serves its bundle at {url}, nobody can accept "
            "the invitation; set the table [federation.bundle_endpoint] in the server's configuration and restart it"
        )
        return (text,)

    def _described(self, url: str, profile: str) -> FederationRelationship:
        """How others are to reach our endpoint."""
        url = url or self._endpoint.url
        if not url:
            raise InvalidRequest(
                "url: nobody said where other trust domains reach this server's bundle endpoint; name it with --url, "
                "or once and for all in federation.public_url",
                field="url",
            )
        chosen = self._endpoint.profile
        if profile:
            try:
                chosen = EndpointProfile(profile)
            except ValueError:
                raise InvalidRequest("profile: must be https_web or https_spiffe", field="profile") from None
        spiffe = chosen is EndpointProfile.HTTPS_SPIFFE
        return FederationRelationship(self._own, url, chosen, self._own_id if spiffe else None)


def _event(change: str, caller: Caller, relationship: FederationRelationship) -> RelationshipChanged:
    return RelationshipChanged(
        change=change,
        trust_domain=str(relationship.trust_domain),
        actor=caller.actor,
        endpoint_url=relationship.endpoint_url,
        endpoint_spiffe_id=str(relationship.endpoint_spiffe_id or ""),
    )


def _accepted(uow: UnitOfWork, *, relationship: FederationRelationship, bundle: TrustBundle) -> None:
    known = uow.relationships.get(relationship.trust_domain)
    if known is not None and known != relationship:
        raise _conflict(relationship, "`federation list`")
    uow.bundles.put(bundle)
    uow.relationships.put(relationship)


def _conflict(relationship: FederationRelationship, where: str) -> Conflict:
    return Conflict(
        f"there is a relationship with {relationship.trust_domain} already, with another endpoint or profile: see "
        f"{where}; change or delete that one first"
    )
