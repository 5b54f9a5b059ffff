"""Calls to an upstream SPIFFE server of the same trust domain, and what each refusal means to an operator.

The server is known by its SPIFFE ID, `spiffe://<trust domain>/spire/server`, and shown our X.509-SVID (spire_wire
section 1). Only a downstream caller may have CAs signed and keys published; reading the bundle is open to it as to
everybody.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import grpc.aio

from identity_server.domain.agents import SERVER_PATH
from identity_server.domain.upstream import UpstreamCa
from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, InvalidRequest, Kind, Unavailable, Unimplemented
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2 as bundle_api_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.convert_bundle import (
    bundle_from_proto,
    jwt_authorities_from_proto,
    jwt_authorities_to_proto,
    wit_authorities_from_proto,
    wit_authorities_to_proto,
)
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.services import Stub
from spiffe_core.wire.status import from_rpc_error
from spiffe_core.wire.tls import TlsIdentity
from spiffe_core.x509_svid import X509Svid

CALL_SECONDS = 5.0
"""For reading the bundle and publishing a key."""
MINT_SECONDS = 10.0
"""For a signature: the upstream may have to ask its own upstream first."""

_SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
_BUNDLE = bundle_api_pb2.DESCRIPTOR.services_by_name["Bundle"]


class NestedServer:
    """The upstream server's API. `identity` gives our newest SVID and `bundle` what the server is verified by."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        trust_domain: TrustDomain,
        identity: Callable[[], X509Svid],
        bundle: Callable[[TrustDomain], TrustBundle | None],
        clock: Clock,
    ) -> None:
        self._place = f"{host}:{port}"
        self._identity = identity
        server_id = SpiffeId(trust_domain, SERVER_PATH)
        self._dialer = Dialer(
            host,
            port,
            trust=lambda: DialTrust(server_id, bundle),
            identity=self._presented,
            now=clock.now,
        )

    async def start(self) -> None:
        """Make ready; nothing is dialled yet."""
        await self._dialer.start()

    async def renew(self) -> None:
        """Use our newest identity for what is called from now on."""
        await self._dialer.renew()

    async def close(self) -> None:
        """Close the connections."""
        await self._dialer.close()

    async def new_ca(self, csr: bytes, ttl: int) -> UpstreamCa:
        """NewDownstreamX509CA (spire_wire section 5.4).

        Raises:
            Unavailable: the server cannot be reached, refuses, or its answer may not be used.
        """
        request = svid_pb2.NewDownstreamX509CARequest(csr=csr, preferred_ttl=ttl)
        response = await self._call(_SVID, "NewDownstreamX509CA", request, MINT_SECONDS)
        try:
            return UpstreamCa(tuple(response.ca_cert_chain), tuple(dict.fromkeys(response.x509_authorities)))
        except InvalidRequest as error:
            raise self._unusable(error) from None

    async def publish(self, authority: JwtAuthority) -> tuple[JwtAuthority, ...]:
        """PublishJWTAuthority: all JWT keys that the trust domain has then.

        Raises:
            Unimplemented: this server publishes no keys.
            Unavailable: as for `new_ca`.
        """
        request = bundle_api_pb2.PublishJWTAuthorityRequest(jwt_authority=jwt_authorities_to_proto([authority])[0])
        response = await self._call(_BUNDLE, "PublishJWTAuthority", request, CALL_SECONDS)
        try:
            return jwt_authorities_from_proto(response.jwt_authorities)
        except InvalidRequest as error:
            raise self._unusable(error) from None

    async def publish_wit(self, authority: WitAuthority) -> tuple[WitAuthority, ...]:
        """PublishWITAuthority: all WIT keys that the trust domain has then.

        Raises:
            Unimplemented: this server publishes no keys; SPIRE's does not.
            Unavailable: as for `new_ca`.
        """
        request = bundle_api_pb2.PublishWITAuthorityRequest(wit_authority=wit_authorities_to_proto([authority])[0])
        response = await self._call(_BUNDLE, "PublishWITAuthority", request, CALL_SECONDS)
        try:
            return wit_authorities_from_proto(response.wit_authorities)
        except InvalidRequest as error:
            raise self._unusable(error) from None

    async def bundle(self) -> TrustBundle:
        """GetBundle: the trust domain's authorities, with what is tainted marked.

        Raises:
            Unavailable: as for `new_ca`.
        """
        response = await self._call(_BUNDLE, "GetBundle", bundle_api_pb2.GetBundleRequest(), CALL_SECONDS)
        try:
            return bundle_from_proto(response)
        except InvalidRequest as error:
            raise self._unusable(error) from None

    def _presented(self) -> TlsIdentity:
        svid = self._identity()
        return TlsIdentity(svid.chain, svid.key)

    async def _call(self, service: Any, method: str, request: object, seconds: float) -> Any:
        own = self._identity().spiffe_id
        try:
            response = await getattr(Stub(self._dialer.channel(), service), method)(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise self._in_words(from_rpc_error(error), method, own) from None
        if response is None:  # what grpc.aio gives for bytes that are no such message
            raise Unavailable(f"upstream spire: the answer of {self._place} to {method} cannot be read")
        return response

    def _in_words(self, error: IdentityError, method: str, own: SpiffeId) -> IdentityError:
        """What a failed call says about the world, and what to do."""
        if error.kind is Kind.UNAVAILABLE:
            told = self._dialer.last_error or error
            return Unavailable(f"upstream spire: {told.public}", upstream=self._place)
        if error.kind is Kind.UNIMPLEMENTED:
            return Unimplemented(f"upstream spire: the server at {self._place} does not offer {method}")
        if error.kind is Kind.FORBIDDEN:
            return Unavailable(
                f"upstream spire: the server at {self._place} has no downstream entry for this server's SPIFFE ID "
                f"{own}: create one there with `identity-server entry create -downstream -spiffeID {own} "
                f"-parentID <the SPIFFE ID of the agent on this machine> -selector unix:uid:{os.getuid()}`, or update the one it has",
                upstream=self._place,
                answer=error.public,
            )
        return Unavailable(
            f"upstream spire: the server at {self._place} refused {method}: {error.public}", upstream=self._place
        )

    def _unusable(self, error: IdentityError) -> Unavailable:
        return Unavailable(f"upstream spire: the answer of {self._place} may not be used: {error.public}")
