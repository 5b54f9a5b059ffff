"""Who may call what: one table, deny by default (spire_features section 8.1).

A method without a row is refused as an internal error, and a test that walks the service descriptors keeps that from
happening. The order of the decision is SPIRE's: anyone, local, admin, downstream, agent. Saying AGENT here only means
that the agent check (`domain.agents.admit`) decides next.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from spiffe_core.errors import Forbidden, Internal
from spiffe_core.spiffe_id import SpiffeId


class CallerKind(enum.Enum):
    """As whom a call is let in."""

    ANYONE = "anyone"
    LOCAL = "local"
    ADMIN = "admin"
    DOWNSTREAM = "downstream"
    AGENT = "agent"

    __hash__ = object.__hash__  # a member is one object; Enum's own is Python, asked ten times a call


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who was let in. `spiffe_id` and `serial` are those of the verified certificate, if there was one."""

    kind: CallerKind
    origin: str
    """Where the call came from, for the audit record: process and uid, or network address."""
    spiffe_id: SpiffeId | None = None
    serial: str = ""
    address: str = ""
    """The IP address of the immediate peer; "" on a Unix socket."""

    @property
    def actor(self) -> str:
        """Who and from where, in one phrase."""
        who = str(self.spiffe_id) if self.spiffe_id is not None else self.kind.value
        return f"{who} ({self.origin})"


_ANYONE = frozenset({CallerKind.ANYONE})
_LOCAL = frozenset({CallerKind.LOCAL})
_AGENT = frozenset({CallerKind.AGENT})
_DOWNSTREAM = frozenset({CallerKind.DOWNSTREAM})
_OPERATOR = frozenset({CallerKind.LOCAL, CallerKind.ADMIN})
_ANY_KNOWN = frozenset({CallerKind.LOCAL, CallerKind.ADMIN, CallerKind.AGENT})

_SERVICES: dict[str, dict[str, frozenset[CallerKind]]] = {
    "spire.api.server.agent.v1.Agent": {
        "AttestAgent": _ANYONE,
        "RenewAgent": _AGENT,
        "PostStatus": _AGENT,
        "CountAgents": _OPERATOR,
        "ListAgents": _OPERATOR,
        "GetAgent": _OPERATOR,
        "DeleteAgent": _OPERATOR,
        "BanAgent": _OPERATOR,
        "CreateJoinToken": _OPERATOR,
    },
    "spire.api.server.bundle.v1.Bundle": {
        "GetBundle": _ANYONE,
        "GetFederatedBundle": _ANY_KNOWN,
        "PublishJWTAuthority": _DOWNSTREAM,
        "PublishWITAuthority": _DOWNSTREAM,
        "AppendBundle": _OPERATOR,
        "CountBundles": _OPERATOR,
        "ListFederatedBundles": _OPERATOR,
        "BatchCreateFederatedBundle": _OPERATOR,
        "BatchUpdateFederatedBundle": _OPERATOR,
        "BatchSetFederatedBundle": _OPERATOR,
        "BatchDeleteFederatedBundle": _OPERATOR,
    },
    "spire.api.server.entry.v1.Entry": {
        "GetAuthorizedEntries": _AGENT,
        "SyncAuthorizedEntries": _AGENT,
        "CountEntries": _OPERATOR,
        "ListEntries": _OPERATOR,
        "GetEntry": _OPERATOR,
        "BatchCreateEntry": _OPERATOR,
        "BatchUpdateEntry": _OPERATOR,
        "BatchDeleteEntry": _OPERATOR,
    },
    "spire.api.server.svid.v1.SVID": {
        "BatchNewX509SVID": _AGENT,
        "NewJWTSVID": _AGENT,
        "BatchNewWITSVID": _AGENT,
        "NewDownstreamX509CA": _DOWNSTREAM,
        "MintX509SVID": _OPERATOR,
        "MintJWTSVID": _OPERATOR,
        "MintWITSVID": _OPERATOR,
    },
    "spire.api.server.trustdomain.v1.TrustDomain": {
        "ListFederationRelationships": _OPERATOR,
        "GetFederationRelationship": _OPERATOR,
        "BatchCreateFederationRelationship": _OPERATOR,
        "BatchUpdateFederationRelationship": _OPERATOR,
        "BatchDeleteFederationRelationship": _OPERATOR,
        "RefreshBundle": _OPERATOR,
    },
    "spire.api.server.localauthority.v1.LocalAuthority": {
        "GetJWTAuthorityState": _OPERATOR,
        "PrepareJWTAuthority": _OPERATOR,
        "ActivateJWTAuthority": _OPERATOR,
        "TaintJWTAuthority": _OPERATOR,
        "RevokeJWTAuthority": _OPERATOR,
        "GetX509AuthorityState": _OPERATOR,
        "PrepareX509Authority": _OPERATOR,
        "ActivateX509Authority": _OPERATOR,
        "TaintX509Authority": _OPERATOR,
        "TaintX509UpstreamAuthority": _OPERATOR,
        "RevokeX509Authority": _OPERATOR,
        "RevokeX509UpstreamAuthority": _OPERATOR,
        "GetWITAuthorityState": _OPERATOR,
        "PrepareWITAuthority": _OPERATOR,
        "ActivateWITAuthority": _OPERATOR,
        "TaintWITAuthority": _OPERATOR,
        "RevokeWITAuthority": _OPERATOR,
    },
    "muniment.server.authorityorders.v1.AuthorityOrders": {
        "PlaceOrder": _OPERATOR,
        "GetOrder": _OPERATOR,
        "ListOrders": _OPERATOR,
        "ListAuthorities": _OPERATOR,
        "GiveUpServer": _OPERATOR,
    },
    "muniment.server.federation.v1.Federation": {
        "ListStates": _OPERATOR,
        "Invite": _OPERATOR,
        "Preview": _OPERATOR,
        "Accept": _OPERATOR,
    },
    "muniment.server.propagation.v1.Propagation": {
        "Follow": _AGENT,
        "AwaitAgents": _OPERATOR,
        "ListProgress": _OPERATOR,
        "CountInForce": _OPERATOR,
    },
    "muniment.server.explain.v1.Explain": {
        "Explain": _OPERATOR,
        "Elsewhere": _AGENT,
        "LintEntries": _OPERATOR,
    },
    "spire.api.server.logger.v1.Logger": {
        "GetLogger": _LOCAL,
        "SetLogLevel": _LOCAL,
        "ResetLogLevel": _LOCAL,
    },
    "spire.api.server.debug.v1.Debug": {"GetInfo": _LOCAL},
    "grpc.health.v1.Health": {"Check": _LOCAL, "List": _LOCAL, "Watch": _LOCAL},
}

ACCESS: Mapping[str, frozenset[CallerKind]] = MappingProxyType(
    {f"/{service}/{method}": kinds for service, rows in _SERVICES.items() for method, kinds in rows.items()}
)
"""Full method name (`/package.Service/Method`) -> the kinds of caller that may call it."""


def allowed_kinds(method: str) -> frozenset[CallerKind]:
    """The row of a method. A method without one is our mistake, and is refused."""
    kinds = ACCESS.get(method)
    if not kinds:
        raise Internal(f"method {method} has no authorization rule; refused", method=method)
    return kinds


def decide(method: str, *, local: bool, identified: bool, admin: bool, downstream: bool) -> CallerKind:
    """As whom the caller may call `method`, in SPIRE's order; AGENT is subject to the agent check.

    `identified` says that a verified certificate of this trust domain was presented; `admin` and `downstream` say
    that a registration entry with that flag carries exactly the caller's SPIFFE ID.
    """
    kinds = allowed_kinds(method)
    if CallerKind.ANYONE in kinds:
        return CallerKind.ANYONE
    if local and CallerKind.LOCAL in kinds:
        return CallerKind.LOCAL
    if identified and admin and CallerKind.ADMIN in kinds:
        return CallerKind.ADMIN
    if identified and downstream and CallerKind.DOWNSTREAM in kinds:
        return CallerKind.DOWNSTREAM
    if identified and CallerKind.AGENT in kinds:
        return CallerKind.AGENT
    raise denied(method)


def denied(method: str) -> Forbidden:
    """SPIRE's words for a refusal without details."""
    return Forbidden(f"authorization denied for method {method}")
