"""spire.api.server.bundle.v1.Bundle (spire_wire section 5.2): our own bundle, and those of other trust domains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from identity_server.domain.federation import DeleteMode, untainted
from identity_server.rpc.batches import completed, read_each, worded
from identity_server.rpc.caller import Context, current_caller
from identity_server.services.federated_bundles import BundleEdit, FederatedBundles, Outcome
from identity_server.services.trust_bundles import TrustBundles
from spiffe_core.bundle import TrustBundle, WitAuthority
from spiffe_core.errors import IdentityError, InvalidRequest
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as bundle_types
from spiffe_core.wire.masks import flagged
from spiffe_core.wire.status import item_status

_FIELDS: Final = {
    "x509_authorities": "x509_authorities",
    "jwt_authorities": "jwt_authorities",
    "wit_authorities": "wit_authorities",
    "refresh_hint": "refresh_hint",
    "sequence_number": "sequence",
}
"""What each bit of a BundleMask writes."""


class BundleApi:
    """Trust bundles."""

    def __init__(self, bundles: TrustBundles, federated: FederatedBundles, *, trust_domain: TrustDomain) -> None:
        self._bundles = bundles
        self._federated = federated
        self._trust_domain = trust_domain
        self._rendered_of: TrustBundle | None = None
        self._rendered: dict[tuple[str, ...] | None, bytes] = {}
        """The same bundle for each set of fields that somebody asked for: five bits, whatever else a mask holds."""

    async def GetBundle(self, request: bundle_pb2.GetBundleRequest, _context: Context) -> bytes:
        """The bundle of the server's own trust domain; anyone may ask.

        Every agent does at each sync: serialized once.
        """
        bundle, mask = self._bundles.own(), _output(request)
        if bundle is not self._rendered_of:
            self._rendered_of, self._rendered = bundle, {}
        asked = None if mask is None else tuple(name for name in _FIELDS if getattr(mask, name))
        answer = self._rendered.get(asked)
        if answer is None:
            answer = self._rendered[asked] = convert.bundle_to_proto(bundle, mask).SerializeToString()
        return answer

    async def CountBundles(
        self, _request: bundle_pb2.CountBundlesRequest, _context: Context
    ) -> bundle_pb2.CountBundlesResponse:
        """How many bundles there are, our own included."""
        return bundle_pb2.CountBundlesResponse(count=await self._bundles.count())

    async def AppendBundle(self, request: bundle_pb2.AppendBundleRequest, _context: Context) -> bundle_types.Bundle:
        """Trust further authorities in our own trust domain. WIT authorities are passed over, as in SPIRE."""
        jwt = worded(
            "failed to convert JWT authority", lambda: convert.jwt_authorities_from_proto(request.jwt_authorities)
        )
        x509 = worded(
            "failed to convert X.509 authority", lambda: convert.x509_authorities_from_proto(request.x509_authorities)
        )
        return convert.bundle_to_proto(await self._bundles.append(current_caller(), x509, jwt), _output(request))

    async def PublishJWTAuthority(
        self, request: bundle_pb2.PublishJWTAuthorityRequest, _context: Context
    ) -> bundle_pb2.PublishJWTAuthorityResponse:
        """Trust the key with which a downstream server signs; all JWT keys of the trust domain."""
        if not request.HasField("jwt_authority"):
            raise InvalidRequest("missing JWT authority", field="jwt_authority")
        (key,) = worded("invalid JWT authority", lambda: convert.jwt_authorities_from_proto([request.jwt_authority]))
        keys = await self._bundles.publish_jwt_authority(current_caller(), key)
        return bundle_pb2.PublishJWTAuthorityResponse(jwt_authorities=convert.jwt_authorities_to_proto(keys))

    async def PublishWITAuthority(
        self, request: bundle_pb2.PublishWITAuthorityRequest, _context: Context
    ) -> bundle_pb2.PublishWITAuthorityResponse:
        """Trust the key with which a downstream server signs WIT-SVIDs, where they are switched on."""
        keys = await self._bundles.publish_wit_authority(current_caller(), lambda: _wit_authority(request))
        return bundle_pb2.PublishWITAuthorityResponse(wit_authorities=convert.wit_authorities_to_proto(keys))

    async def ListFederatedBundles(
        self, request: bundle_pb2.ListFederatedBundlesRequest, _context: Context
    ) -> bundle_pb2.ListFederatedBundlesResponse:
        """The bundles of other trust domains, by page."""
        page = await self._bundles.page(request.page_token, request.page_size)
        mask = _output(request)
        response = bundle_pb2.ListFederatedBundlesResponse(next_page_token=page.next_token)
        for bundle in page:
            response.bundles.append(convert.bundle_to_proto(bundle, mask))
            await asyncio.sleep(0)
        return response

    async def GetFederatedBundle(
        self, request: bundle_pb2.GetFederatedBundleRequest, _context: Context
    ) -> bundle_types.Bundle:
        """The bundle of another trust domain."""
        name = _trust_domain(request.trust_domain)
        return convert.bundle_to_proto(await self._bundles.federated(name), _output(request))

    async def BatchCreateFederatedBundle(
        self, request: bundle_pb2.BatchCreateFederatedBundleRequest, _context: Context
    ) -> bundle_pb2.BatchCreateFederatedBundleResponse:
        """One result per bundle; a trust domain that has one answers AlreadyExists."""
        read = await read_each(request.bundle, partial(self._bundle, "creating a"), self._refused("create"))
        outcomes = await completed(read, partial(self._federated.create, current_caller()))
        mask = _output(request)
        response = bundle_pb2.BatchCreateFederatedBundleResponse()
        for outcome in outcomes:
            response.results.add(**_result(outcome, mask))
        return response

    async def BatchSetFederatedBundle(
        self, request: bundle_pb2.BatchSetFederatedBundleRequest, _context: Context
    ) -> bundle_pb2.BatchSetFederatedBundleResponse:
        """One result per bundle, stored whether or not there was one."""
        read = await read_each(request.bundle, partial(self._bundle, "setting a"), self._refused("set"))
        outcomes = await completed(read, partial(self._federated.put, current_caller()))
        mask = _output(request)
        response = bundle_pb2.BatchSetFederatedBundleResponse()
        for outcome in outcomes:
            response.results.add(**_result(outcome, mask))
        return response

    async def BatchUpdateFederatedBundle(
        self, request: bundle_pb2.BatchUpdateFederatedBundleRequest, _context: Context
    ) -> bundle_pb2.BatchUpdateFederatedBundleResponse:
        """One result per bundle; the input mask says which fields are written, none says all."""
        written = convert.mask_of(request, "input_mask", bundle_types.BundleMask)
        read = await read_each(request.bundle, partial(self._edit, written), self._refused("update"))
        outcomes = await completed(read, partial(self._federated.update, current_caller()))
        mask = _output(request)
        response = bundle_pb2.BatchUpdateFederatedBundleResponse()
        for outcome in outcomes:
            response.results.add(**_result(outcome, mask))
        return response

    async def BatchDeleteFederatedBundle(
        self, request: bundle_pb2.BatchDeleteFederatedBundleRequest, _context: Context
    ) -> bundle_pb2.BatchDeleteFederatedBundleResponse:
        """One result per trust domain."""
        try:
            mode = DeleteMode(request.mode)
        except ValueError:
            raise InvalidRequest(
                f"failed to parse deletion mode: unhandled delete mode {request.mode}; use 0 to 2", field="mode"
            ) from None
        read = await read_each(request.trust_domains, self._deletable, self._refused("delete"))
        outcomes = await completed(read, lambda names: self._federated.delete(current_caller(), names, mode))
        response = bundle_pb2.BatchDeleteFederatedBundleResponse()
        for name, outcome in zip(request.trust_domains, outcomes, strict=True):
            response.results.add(status=item_status(outcome), trust_domain=name)
        return response

    def _refused(self, change: str) -> Callable[[str, IdentityError], None]:
        return partial(self._federated.refused, current_caller(), change)

    def _bundle(self, action: str, message: bundle_types.Bundle) -> TrustBundle:
        self._foreign(message.trust_domain, f"{action} federated bundle for the server's own trust domain")
        return worded("failed to convert bundle", lambda: untainted(convert.bundle_from_proto(message)))

    def _edit(self, mask: bundle_types.BundleMask | None, message: bundle_types.Bundle) -> BundleEdit:
        name = self._foreign(message.trust_domain, "updating a federated bundle for the server's own trust domain")
        given = worded("failed to convert bundle", lambda: untainted(convert.bundle_from_proto(message, mask)))
        written = {_FIELDS[bit]: getattr(given, _FIELDS[bit]) for bit in (_FIELDS if mask is None else flagged(mask))}
        return BundleEdit(name, lambda before: replace(before, **written))

    def _deletable(self, name: str) -> TrustDomain:
        return self._foreign(name, "removing the bundle for the server trust domain")

    def _foreign(self, name: str, action: str) -> TrustDomain:
        trust_domain = _trust_domain(name)
        if trust_domain == self._trust_domain:
            raise InvalidRequest(f"{action} is not allowed", field="trust_domain")
        return trust_domain


def _wit_authority(request: bundle_pb2.PublishWITAuthorityRequest) -> WitAuthority:
    if not request.HasField("wit_authority"):
        raise InvalidRequest("missing WIT authority", field="wit_authority")
    (key,) = worded("invalid WIT authority", lambda: convert.wit_authorities_from_proto([request.wit_authority]))
    return key


def _trust_domain(name: str) -> TrustDomain:
    return worded("trust domain argument is not valid", lambda: convert.trust_domain_from_proto(name))


def _output(request: Any) -> bundle_types.BundleMask | None:
    return convert.mask_of(request, "output_mask", bundle_types.BundleMask)


def _result(outcome: Outcome, mask: bundle_types.BundleMask | None) -> dict[str, Any]:
    """The fields of one result."""
    if isinstance(outcome, TrustBundle):
        return {"status": item_status(None), "bundle": convert.bundle_to_proto(outcome, mask)}
    return {"status": item_status(outcome)}
