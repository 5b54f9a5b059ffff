"""spire.api.server.localauthority.v1.LocalAuthority (spire_wire section 5.6): the same five verbs for three kinds."""

from __future__ import annotations

from identity_server.domain.authority import AuthorityKind
from identity_server.rpc.caller import Context, current_caller
from identity_server.services.local_authority import AuthorityView, LocalAuthorities
from identity_server.services.upstream_authorities import UpstreamAuthorities
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb


class LocalAuthorityApi:
    """Authorities by command."""

    def __init__(self, authorities: LocalAuthorities, upstream: UpstreamAuthorities) -> None:
        self._authorities = authorities
        self._upstream = upstream

    async def GetX509AuthorityState(
        self, _request: pb.GetX509AuthorityStateRequest, _context: Context
    ) -> pb.GetX509AuthorityStateResponse:
        """The X.509 authorities in this server's slots."""
        return pb.GetX509AuthorityStateResponse(**self._states("x509"))

    async def GetJWTAuthorityState(
        self, _request: pb.GetJWTAuthorityStateRequest, _context: Context
    ) -> pb.GetJWTAuthorityStateResponse:
        """The JWT authorities in this server's slots."""
        return pb.GetJWTAuthorityStateResponse(**self._states("jwt"))

    async def GetWITAuthorityState(
        self, _request: pb.GetWITAuthorityStateRequest, _context: Context
    ) -> pb.GetWITAuthorityStateResponse:
        """The WIT authorities in this server's slots."""
        return pb.GetWITAuthorityStateResponse(**self._states("wit"))

    async def PrepareX509Authority(
        self, _request: pb.PrepareX509AuthorityRequest, _context: Context
    ) -> pb.PrepareX509AuthorityResponse:
        """A new X.509 authority, published and not yet signing."""
        return pb.PrepareX509AuthorityResponse(prepared_authority=await self._prepare("x509"))

    async def PrepareJWTAuthority(
        self, _request: pb.PrepareJWTAuthorityRequest, _context: Context
    ) -> pb.PrepareJWTAuthorityResponse:
        """A new JWT authority, published and not yet signing."""
        return pb.PrepareJWTAuthorityResponse(prepared_authority=await self._prepare("jwt"))

    async def PrepareWITAuthority(
        self, _request: pb.PrepareWITAuthorityRequest, _context: Context
    ) -> pb.PrepareWITAuthorityResponse:
        """A new WIT authority, published and not yet signing."""
        return pb.PrepareWITAuthorityResponse(prepared_authority=await self._prepare("wit"))

    async def ActivateX509Authority(
        self, request: pb.ActivateX509AuthorityRequest, _context: Context
    ) -> pb.ActivateX509AuthorityResponse:
        """The prepared X.509 authority signs from now on."""
        return pb.ActivateX509AuthorityResponse(activated_authority=await self._activate("x509", request.authority_id))

    async def ActivateJWTAuthority(
        self, request: pb.ActivateJWTAuthorityRequest, _context: Context
    ) -> pb.ActivateJWTAuthorityResponse:
        """The prepared JWT authority signs from now on."""
        return pb.ActivateJWTAuthorityResponse(activated_authority=await self._activate("jwt", request.authority_id))

    async def ActivateWITAuthority(
        self, request: pb.ActivateWITAuthorityRequest, _context: Context
    ) -> pb.ActivateWITAuthorityResponse:
        """The prepared WIT authority signs from now on."""
        return pb.ActivateWITAuthorityResponse(activated_authority=await self._activate("wit", request.authority_id))

    async def TaintX509Authority(
        self, request: pb.TaintX509AuthorityRequest, _context: Context
    ) -> pb.TaintX509AuthorityResponse:
        """Everyone below this X.509 authority rotates."""
        return pb.TaintX509AuthorityResponse(tainted_authority=await self._taint("x509", request.authority_id))

    async def TaintJWTAuthority(
        self, request: pb.TaintJWTAuthorityRequest, _context: Context
    ) -> pb.TaintJWTAuthorityResponse:
        """Tokens of this JWT authority are replaced."""
        return pb.TaintJWTAuthorityResponse(tainted_authority=await self._taint("jwt", request.authority_id))

    async def TaintWITAuthority(
        self, request: pb.TaintWITAuthorityRequest, _context: Context
    ) -> pb.TaintWITAuthorityResponse:
        """Tokens of this WIT authority are replaced."""
        return pb.TaintWITAuthorityResponse(tainted_authority=await self._taint("wit", request.authority_id))

    async def RevokeX509Authority(
        self, request: pb.RevokeX509AuthorityRequest, _context: Context
    ) -> pb.RevokeX509AuthorityResponse:
        """This X.509 authority leaves the bundle."""
        return pb.RevokeX509AuthorityResponse(revoked_authority=await self._revoke("x509", request.authority_id))

    async def RevokeJWTAuthority(
        self, request: pb.RevokeJWTAuthorityRequest, _context: Context
    ) -> pb.RevokeJWTAuthorityResponse:
        """This JWT authority leaves the bundle."""
        return pb.RevokeJWTAuthorityResponse(revoked_authority=await self._revoke("jwt", request.authority_id))

    async def RevokeWITAuthority(
        self, request: pb.RevokeWITAuthorityRequest, _context: Context
    ) -> pb.RevokeWITAuthorityResponse:
        """This WIT authority leaves the bundle."""
        return pb.RevokeWITAuthorityResponse(revoked_authority=await self._revoke("wit", request.authority_id))

    async def TaintX509UpstreamAuthority(
        self, request: pb.TaintX509UpstreamAuthorityRequest, _context: Context
    ) -> pb.TaintX509UpstreamAuthorityResponse:
        """Everything below this upstream authority rotates. Only for servers that have an upstream."""
        await self._upstream.taint(current_caller(), request.subject_key_id)
        return pb.TaintX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=request.subject_key_id)

    async def RevokeX509UpstreamAuthority(
        self, request: pb.RevokeX509UpstreamAuthorityRequest, _context: Context
    ) -> pb.RevokeX509UpstreamAuthorityResponse:
        """This upstream authority leaves the bundle. Only for servers that have an upstream."""
        await self._upstream.revoke(current_caller(), request.subject_key_id)
        return pb.RevokeX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=request.subject_key_id)

    def _states(self, kind: AuthorityKind) -> dict[str, pb.AuthorityState]:
        found = self._authorities.states(kind)
        views = {"active": found.active, "prepared": found.prepared, "old": found.old}
        return {name: _to_proto(view) for name, view in views.items() if view is not None}

    async def _prepare(self, kind: AuthorityKind) -> pb.AuthorityState:
        return _to_proto(await self._authorities.prepare(current_caller(), kind))

    async def _activate(self, kind: AuthorityKind, authority_id: str) -> pb.AuthorityState:
        return _to_proto(await self._authorities.activate(current_caller(), kind, authority_id))

    async def _taint(self, kind: AuthorityKind, authority_id: str) -> pb.AuthorityState:
        return _to_proto(await self._authorities.taint(current_caller(), kind, authority_id))

    async def _revoke(self, kind: AuthorityKind, authority_id: str) -> pb.AuthorityState:
        return _to_proto(await self._authorities.revoke(current_caller(), kind, authority_id))


def _to_proto(view: AuthorityView) -> pb.AuthorityState:
    return pb.AuthorityState(
        authority_id=view.authority_id,
        expires_at=view.expires_at,
        upstream_authority_subject_key_id=view.upstream_id,
    )
