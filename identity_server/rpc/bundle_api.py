"""spire.api.server.bundle.v1.Bundle (spire_wire section 5.2): our own bundle."""

from __future__ import annotations

from identity_server.rpc.caller import Context
from identity_server.services.trust_bundles import TrustBundles
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as bundle_types


class BundleApi:
    """Trust bundles."""

    def __init__(self, bundles: TrustBundles) -> None:
        self._bundles = bundles

    async def GetBundle(self, request: bundle_pb2.GetBundleRequest, _context: Context) -> bundle_types.Bundle:
        """The bundle of the server's own trust domain; anyone may ask."""
        mask = convert.mask_of(request, "output_mask", bundle_types.BundleMask)
        return convert.bundle_to_proto(self._bundles.own(), mask)

    async def CountBundles(
        self, _request: bundle_pb2.CountBundlesRequest, _context: Context
    ) -> bundle_pb2.CountBundlesResponse:
        """How many bundles there are, our own included."""
        return bundle_pb2.CountBundlesResponse(count=await self._bundles.count())
