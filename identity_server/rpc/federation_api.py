"""muniment.server.federation.v1.Federation: how foreign bundles are fetched, and invitations to federate."""

from __future__ import annotations

from datetime import datetime, timedelta

from identity_server.domain.federation import FederationRelationship
from identity_server.domain.invitation import DEFAULT_LIFE, MAX_LINE, MAX_PINS, pinned_keys
from identity_server.rpc.caller import Context, current_caller
from identity_server.rpc.trust_domain_api import Message, set_profile
from identity_server.services.bundle_refresh import BundleRefresh, Refreshed
from identity_server.services.invitations import Invitations
from spiffe_core.errors import InvalidRequest, NotFound
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.muniment.server.federation.v1 import federation_pb2 as pb


class FederationApi:
    """What SPIRE's TrustDomain service has no words for."""

    def __init__(self, refresh: BundleRefresh, invitations: Invitations) -> None:
        self._refresh, self._invitations = refresh, invitations

    async def ListStates(self, request: pb.ListStatesRequest, _context: Context) -> pb.ListStatesResponse:
        """The relationships in force here, and how their fetches go."""
        states = self._refresh.report()
        if request.trust_domain:
            wanted = TrustDomain.parse(request.trust_domain)
            states = [one for one in states if one.relationship.trust_domain == wanted]
            if not states:
                raise NotFound("federation relationship does not exist")
        return pb.ListStatesResponse(states=map(_state, states))

    async def Invite(self, request: pb.InviteRequest, _context: Context) -> pb.InviteResponse:
        """An invitation to federate with us."""
        if request.ttl < 0:
            raise InvalidRequest("ttl: must be seconds, or 0 for the default", field="ttl")
        life = timedelta(seconds=min(request.ttl, 1 << 31)) if request.ttl else DEFAULT_LIFE
        made = self._invitations.invite(current_caller(), request.url, request.profile, life)
        return pb.InviteResponse(invitation=made.line, expires_at=_seconds(made.expires_at), warnings=made.warnings)

    async def Preview(self, request: pb.PreviewRequest, _context: Context) -> pb.PreviewResponse:
        """What an invitation offers."""
        offer = await self._invitations.preview(_line(request.invitation))
        return pb.PreviewResponse(
            relationship=_relationship(offer.invitation.relationship),
            keys=[
                pb.Key(use=key.use, key_id=key.key_id, fingerprint=key.pin) for key in pinned_keys(offer.loaded.bundle)
            ],
            warnings=offer.loaded.warnings,
            expires_at=_seconds(offer.invitation.expires_at),
            sequence=offer.loaded.bundle.sequence,
        )

    async def Accept(self, request: pb.AcceptRequest, _context: Context) -> pb.AcceptResponse:
        """Trust what an invitation offers, and invite in return."""
        if not 0 < len(request.fingerprints) <= MAX_PINS:
            raise InvalidRequest(
                f"fingerprints: must be 1 to {MAX_PINS}, those that Preview told", field="fingerprints"
            )
        caller = current_caller()
        await self._invitations.accept(caller, _line(request.invitation), frozenset(request.fingerprints))
        try:
            made = self._invitations.invite(caller, request.url, request.profile)
        except InvalidRequest as refusal:
            return pb.AcceptResponse(no_invitation=refusal.public)
        return pb.AcceptResponse(invitation=made.line, warnings=made.warnings)


def _line(text: str) -> str:
    if len(text) > 2 * MAX_LINE:
        raise InvalidRequest(f"the invitation is longer than {MAX_LINE} characters", field="invitation")
    return text


def _relationship(relationship: FederationRelationship) -> Message:
    message = Message(trust_domain=relationship.trust_domain.name, bundle_endpoint_url=relationship.endpoint_url)
    set_profile(message, relationship)
    return message


def _state(one: Refreshed) -> pb.State:
    state, bundle = one.state, one.bundle
    message = pb.State(
        relationship=_relationship(one.relationship),
        configured=one.static,
        attempted_at=_seconds(state.attempted_at),
        fetched_at=_seconds(state.fetched_at),
        next_at=_seconds(state.next_at),
        failures=min(state.failures, (1 << 31) - 1),
        error=state.error,
        warnings=state.warnings,
    )
    if bundle is not None:
        message.has_bundle = True
        message.sequence = bundle.sequence
        message.x509_authorities = len(bundle.x509_authorities)
        message.jwt_authorities = len(bundle.jwt_authorities)
        message.refresh_hint = bundle.refresh_hint
    return message


def _seconds(time: datetime | None) -> int:
    return int(time.timestamp()) if time is not None else 0
