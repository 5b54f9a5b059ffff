"""spire.api.server.trustdomain.v1.TrustDomain (spire_wire section 5.5): federation relationships."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.empty_pb2 import Empty

from identity_server.domain.federation import EndpointProfile, FederationRelationship, check_endpoint_url, untainted
from identity_server.rpc.batches import completed, read_each, worded
from identity_server.rpc.caller import Context, current_caller
from identity_server.services.federation import Federated, Federation, Outcome, RelationshipEdit
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import IdentityError, InvalidRequest
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2
from spiffe_core.wire._gen.spire.api.types import federationrelationship_pb2 as types_pb2
from spiffe_core.wire.status import item_status

Message = types_pb2.FederationRelationship
Mask = types_pb2.FederationRelationshipMask
_ALL = Mask(bundle_endpoint_url=True, bundle_endpoint_profile=True, trust_domain_bundle=True)
_CONVERTING = "failed to convert federation relationship"


class TrustDomainApi:
    """Federation relationships, for administrators."""

    def __init__(self, federation: Federation, *, trust_domain: TrustDomain) -> None:
        self._federation = federation
        self._trust_domain = trust_domain

    async def ListFederationRelationships(
        self, request: trustdomain_pb2.ListFederationRelationshipsRequest, _context: Context
    ) -> trustdomain_pb2.ListFederationRelationshipsResponse:
        """Relationships by page."""
        page = await self._federation.page(request.page_token, request.page_size)
        mask = _mask(request, "output_mask")
        response = trustdomain_pb2.ListFederationRelationshipsResponse(next_page_token=page.next_token)
        for found in page:
            response.federation_relationships.append(_shown(found, mask))
            await asyncio.sleep(0)
        return response

    async def GetFederationRelationship(
        self, request: trustdomain_pb2.GetFederationRelationshipRequest, _context: Context
    ) -> Message:
        """One relationship."""
        return _shown(await self._federation.get(_trust_domain(request.trust_domain)), _mask(request, "output_mask"))

    async def BatchCreateFederationRelationship(
        self, request: trustdomain_pb2.BatchCreateFederationRelationshipRequest, _context: Context
    ) -> trustdomain_pb2.BatchCreateFederationRelationshipResponse:
        """One result per relationship; a bundle that comes with one is stored too."""
        read = await read_each(request.federation_relationships, self._new, self._refused("create"))
        outcomes = await completed(read, partial(self._federation.create, current_caller()))
        mask = _mask(request, "output_mask")
        response = trustdomain_pb2.BatchCreateFederationRelationshipResponse()
        for outcome in outcomes:
            response.results.add(**_result(outcome, mask))
        return response

    async def BatchUpdateFederationRelationship(
        self, request: trustdomain_pb2.BatchUpdateFederationRelationshipRequest, _context: Context
    ) -> trustdomain_pb2.BatchUpdateFederationRelationshipResponse:
        """One result per relationship; the input mask says which fields are written, none says all."""
        read = await read_each(
            request.federation_relationships, partial(_edit, _mask(request, "input_mask")), self._refused("update")
        )
        outcomes = await completed(read, partial(self._federation.update, current_caller()))
        mask = _mask(request, "output_mask")
        response = trustdomain_pb2.BatchUpdateFederationRelationshipResponse()
        for outcome in outcomes:
            response.results.add(**_result(outcome, mask))
        return response

    async def BatchDeleteFederationRelationship(
        self, request: trustdomain_pb2.BatchDeleteFederationRelationshipRequest, _context: Context
    ) -> trustdomain_pb2.BatchDeleteFederationRelationshipResponse:
        """One result per trust domain. The bundles stay."""
        read = await read_each(request.trust_domains, _deletable, self._refused("delete"))
        outcomes = await completed(read, partial(self._federation.delete, current_caller()))
        response = trustdomain_pb2.BatchDeleteFederationRelationshipResponse()
        for given, name, outcome in zip(request.trust_domains, read, outcomes, strict=True):
            shown = name.name if isinstance(name, TrustDomain) else given
            response.results.add(status=item_status(outcome), trust_domain=shown)
        return response

    async def RefreshBundle(self, request: trustdomain_pb2.RefreshBundleRequest, _context: Context) -> Empty:
        """Fetch the bundle of a relationship now."""
        await self._federation.refresh(_trust_domain(request.trust_domain))
        return Empty()

    def _refused(self, change: str) -> Callable[[str, IdentityError], None]:
        return partial(self._federation.refused, current_caller(), change)

    def _new(self, message: Message) -> Federated:
        wanted = worded(_CONVERTING, lambda: _read(message))
        if wanted.relationship.trust_domain == self._trust_domain:
            raise InvalidRequest(
                "unable to create federation relationship for server trust domain", field="trust_domain"
            )
        return wanted


def _read(message: Message) -> Federated:
    name = _trust_domain(message.trust_domain)
    profile, endpoint = _profile(message)
    return Federated(
        FederationRelationship(name, check_endpoint_url(message.bundle_endpoint_url), profile, endpoint),
        _bundle(message, name),
    )


def _edit(mask: Mask, message: Message) -> RelationshipEdit:
    return worded(_CONVERTING, lambda: _read_edit(mask, message))


def _read_edit(mask: Mask, message: Message) -> RelationshipEdit:
    """Only what is to be written is looked at."""
    name = _trust_domain(message.trust_domain)
    written: dict[str, Any] = {}
    if mask.bundle_endpoint_url:
        written["endpoint_url"] = check_endpoint_url(message.bundle_endpoint_url)
    if mask.bundle_endpoint_profile:
        written["profile"], written["endpoint_spiffe_id"] = _profile(message)
    bundle = _bundle(message, name) if mask.trust_domain_bundle else None
    return RelationshipEdit(name, lambda before: replace(before, **written), bundle)


def _profile(message: Message) -> tuple[EndpointProfile, SpiffeId | None]:
    match message.WhichOneof("bundle_endpoint_profile"):
        case "https_web":
            return EndpointProfile.HTTPS_WEB, None
        case "https_spiffe":
            text = message.https_spiffe.endpoint_spiffe_id
            field = "https_spiffe.endpoint_spiffe_id"
            return EndpointProfile.HTTPS_SPIFFE, worded(
                "failed to parse endpoint SPIFFE ID", lambda: SpiffeId.parse(text, field=field)
            )
    raise InvalidRequest(
        "unsupported bundle endpoint profile type: none is given; set https_web or https_spiffe",
        field="bundle_endpoint_profile",
    )


def _bundle(message: Message, name: TrustDomain) -> TrustBundle | None:
    if not message.HasField("trust_domain_bundle"):
        return None
    given = message.trust_domain_bundle
    bundle = worded("failed to parse bundle", lambda: untainted(convert.bundle_from_proto(given)))
    if bundle.trust_domain != name:
        raise InvalidRequest(
            f'trust domain bundle ("{bundle.trust_domain}") must match the trust domain of the federation relationship '
            f'("{name}")',
            field="trust_domain_bundle.trust_domain",
        )
    return bundle


def _deletable(name: str) -> TrustDomain:
    if not name:
        raise InvalidRequest("missing trust domain", field="trust_domains")
    return _trust_domain(name)


def _trust_domain(name: str) -> TrustDomain:
    return worded("failed to parse trust domain", lambda: convert.trust_domain_from_proto(name))


def _mask(request: Any, field: str) -> Mask:
    return convert.mask_of(request, field, Mask) or _ALL


def _result(outcome: Outcome, mask: Mask) -> dict[str, Any]:
    """The fields of one result."""
    if isinstance(outcome, Federated):
        return {"status": item_status(None), "federation_relationship": _shown(outcome, mask)}
    return {"status": item_status(outcome)}


def _shown(found: Federated, mask: Mask) -> Message:
    """A relationship with the fields that `mask` asks for."""
    relationship = found.relationship
    message = Message(trust_domain=relationship.trust_domain.name)
    if mask.bundle_endpoint_url:
        message.bundle_endpoint_url = relationship.endpoint_url
    if mask.bundle_endpoint_profile:
        set_profile(message, relationship)
    if mask.trust_domain_bundle and found.bundle is not None:
        message.trust_domain_bundle.CopyFrom(convert.bundle_to_proto(found.bundle))
    return message


def set_profile(message: Message, relationship: FederationRelationship) -> None:
    """Say how the endpoint is authenticated. `https_web` is there though it has nothing in it."""
    if relationship.profile is EndpointProfile.HTTPS_WEB:
        message.https_web.SetInParent()
    else:
        message.https_spiffe.endpoint_spiffe_id = str(relationship.endpoint_spiffe_id)
