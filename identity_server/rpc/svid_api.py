"""spire.api.server.svid.v1.SVID (spire_wire section 5.4): X.509-SVIDs, JWT-SVIDs and WIT-SVIDs."""

from __future__ import annotations

from identity_server.rpc.agent_api import svid_to_proto
from identity_server.rpc.caller import Context, current_caller
from identity_server.services.downstream import Downstream
from identity_server.services.issue_svids import IssueSvids, Terms, Wanted
from identity_server.services.issue_tokens import IssueTokens, TokenTerms, WantedWit
from identity_server.services.issuer import IssuedX509
from spiffe_core.errors import IdentityError, InvalidRequest
from spiffe_core.jwt_svid import JwtSvid
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire._gen.spire.api.types import jwtsvid_pb2, witsvid_pb2
from spiffe_core.wire.status import OK, item_status
from spiffe_core.wit_svid import WitSvid


class SvidApi:
    """SVIDs for workloads and for administrators."""

    def __init__(self, issue: IssueSvids, tokens: IssueTokens, downstream: Downstream) -> None:
        self._issue = issue
        self._downstream = downstream
        self._tokens = tokens

    async def MintX509SVID(
        self, request: svid_pb2.MintX509SVIDRequest, _context: Context
    ) -> svid_pb2.MintX509SVIDResponse:
        """Sign what an administrator's CSR asks for."""
        issued = self._issue.mint(current_caller(), request.csr, request.ttl)
        return svid_pb2.MintX509SVIDResponse(svid=svid_to_proto(issued))

    async def BatchNewX509SVID(
        self, request: svid_pb2.BatchNewX509SVIDRequest, _context: Context
    ) -> svid_pb2.BatchNewX509SVIDResponse:
        """One result per item: the entry's SPIFFE ID for the CSR's key."""
        wanted = [Wanted(item.entry_id, item.csr) for item in request.params]
        response = svid_pb2.BatchNewX509SVIDResponse()
        for answer in await self._issue.for_entries(current_caller(), wanted):
            if isinstance(answer, IdentityError):
                response.results.add(status=item_status(answer))
            else:
                _add_svid(response, answer)
        return response

    async def NewDownstreamX509CA(
        self, request: svid_pb2.NewDownstreamX509CARequest, _context: Context
    ) -> svid_pb2.NewDownstreamX509CAResponse:
        """A CA certificate for a downstream server's key, the certificates above it, and the roots."""
        made = self._downstream.new_ca(current_caller(), request.csr, request.preferred_ttl)
        return svid_pb2.NewDownstreamX509CAResponse(ca_cert_chain=made.chain, x509_authorities=made.roots)

    async def MintJWTSVID(
        self, request: svid_pb2.MintJWTSVIDRequest, _context: Context
    ) -> svid_pb2.MintJWTSVIDResponse:
        """Sign a token for the identity and the audiences an administrator names."""
        svid = self._tokens.mint_jwt(current_caller(), lambda: _subject(request), request.audience, request.ttl)
        response = svid_pb2.MintJWTSVIDResponse()
        _fill_jwt(response.svid, svid)
        return response

    async def NewJWTSVID(self, request: svid_pb2.NewJWTSVIDRequest, _context: Context) -> svid_pb2.NewJWTSVIDResponse:
        """Sign a token for an entry the agent is authorised for."""
        svid = await self._tokens.jwt_for_entry(current_caller(), request.entry_id, request.audience)
        response = svid_pb2.NewJWTSVIDResponse()
        _fill_jwt(response.svid, svid)
        return response

    async def MintWITSVID(
        self, request: svid_pb2.MintWITSVIDRequest, _context: Context
    ) -> svid_pb2.MintWITSVIDResponse:
        """Sign a token that binds the identity an administrator names to a key."""
        svid = self._tokens.mint_wit(
            current_caller(),
            lambda: _subject(request),
            request.public_key,
            request.signing_algorithm,
            request.ttl,
        )
        return svid_pb2.MintWITSVIDResponse(svid=_wit_to_proto(svid))

    async def BatchNewWITSVID(
        self, request: svid_pb2.BatchNewWITSVIDRequest, _context: Context
    ) -> svid_pb2.BatchNewWITSVIDResponse:
        """One result per item, each with its status: the entry's SPIFFE ID for the item's key."""
        wanted = [WantedWit(item.entry_id, item.public_key, item.signing_algorithm) for item in request.params]
        response = svid_pb2.BatchNewWITSVIDResponse()
        for answer in await self._tokens.wits_for_entries(current_caller(), wanted):
            if isinstance(answer, IdentityError):
                response.results.add(status=item_status(answer))
            else:
                response.results.add(status=item_status(None), svid=_wit_to_proto(answer))
        return response


def _add_svid(response: svid_pb2.BatchNewX509SVIDResponse, issued: IssuedX509) -> None:
    """Filled in place: a message made apart would be copied three times, 500 times a call."""
    result = response.results.add()
    result.status.message = OK
    svid = result.svid
    svid.cert_chain.extend(issued.chain)
    svid.id.trust_domain, svid.id.path = issued.spiffe_id.trust_domain.name, issued.spiffe_id.path
    svid.expires_at = issued.not_after


def token_terms_of(wire: bytes) -> TokenTerms:
    """What of an entry's wire bytes goes into a token."""
    message = entry_types.Entry.FromString(wire)
    return TokenTerms(message.jwt_svid_ttl, message.additional_attributes.jwt_svid_include_jti)


def _fill_jwt(message: jwtsvid_pb2.JWTSVID, svid: JwtSvid) -> None:
    """In place, as `_add_svid`."""
    message.token, message.expires_at, message.issued_at = svid.token, svid.expires_at, svid.issued_at
    message.id.trust_domain, message.id.path = svid.spiffe_id.trust_domain.name, svid.spiffe_id.path


def _wit_to_proto(svid: WitSvid) -> witsvid_pb2.WITSVID:
    return witsvid_pb2.WITSVID(
        token=svid.token,
        id=convert.spiffe_id_to_proto(svid.spiffe_id),
        expires_at=svid.expires_at,
        issued_at=svid.issued_at,
    )


def _subject(request: svid_pb2.MintJWTSVIDRequest | svid_pb2.MintWITSVIDRequest) -> SpiffeId:
    if not request.HasField("id"):
        raise InvalidRequest("missing SPIFFE ID", field="id")
    return convert.spiffe_id_from_proto(request.id, field="id")


def terms_of(wire: bytes) -> Terms:
    """What of an entry's wire bytes goes into a certificate."""
    message = entry_types.Entry.FromString(wire)
    return Terms(message.x509_svid_ttl, tuple(message.dns_names))
