"""Every gRPC service of the server, each with the use-cases it calls: what a method can do is decided here.

Use-cases that nothing but a service needs are made here; those that the daemon's loops share come in `Served`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import grpc

from attestors.registry import NODE_VERIFIERS, WORKLOAD_ATTESTORS
from identity_server.federating import Federating
from identity_server.opening import new_id
from identity_server.ports import AuditLog, Store, UpstreamAuthority
from identity_server.rpc.agent_api import AgentApi
from identity_server.rpc.authority_orders_api import AuthorityOrdersApi
from identity_server.rpc.bundle_api import BundleApi
from identity_server.rpc.debug_api import DebugApi
from identity_server.rpc.entry_api import EntryApi
from identity_server.rpc.explain_api import ExplainApi
from identity_server.rpc.federation_api import FederationApi
from identity_server.rpc.health_api import SERVICE as HEALTH
from identity_server.rpc.health_api import HealthApi
from identity_server.rpc.local_authority_api import LocalAuthorityApi
from identity_server.rpc.logger_api import LoggerApi
from identity_server.rpc.propagation_api import PropagationApi
from identity_server.rpc.services import (
    AGENT,
    AUTHORITY_ORDERS,
    BUNDLE,
    DEBUG,
    ENTRY,
    EXPLAIN,
    FEDERATION,
    LOCAL_AUTHORITY,
    LOGGER,
    PROPAGATION,
    SVID,
    TRUST_DOMAIN,
)
from identity_server.rpc.svid_api import SvidApi, terms_of, token_terms_of
from identity_server.rpc.trust_domain_api import TrustDomainApi
from identity_server.services.attest_agent import AttestAgents
from identity_server.services.authorities import Authorities
from identity_server.services.authority_orders import AuthorityOrders
from identity_server.services.downstream import Downstream
from identity_server.services.entitlements import Entitlements
from identity_server.services.entry_ids import EntryIds
from identity_server.services.explain import ExplainEntitlement
from identity_server.services.federated_bundles import FederatedBundles
from identity_server.services.federation import Federation
from identity_server.services.fleet import Fleet
from identity_server.services.followers import Followers
from identity_server.services.in_force import InForce
from identity_server.services.issue_svids import IssueSvids
from identity_server.services.issue_tokens import IssueTokens
from identity_server.services.lint_entries import LintEntries
from identity_server.services.local_authority import LocalAuthorities
from identity_server.services.own_identity import OwnIdentity
from identity_server.services.progress import Progress
from identity_server.services.registration import Registration
from identity_server.services.server_info import ServerInfo
from identity_server.services.server_log import ServerLog
from identity_server.services.trust_bundles import TrustBundles
from identity_server.services.upstream_authorities import UpstreamAuthorities
from identity_server.settings import ServerSettings
from identity_server.signing.pool import SigningWorkers
from spiffe_core.clock import Clock
from spiffe_core.runtime.logs import LogLevel
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.services import handlers

MAX_TERMS = 4096
"""Of so many entries it is kept what goes into their tokens: who asks for tokens asks for the same again and again."""


@dataclass(frozen=True, slots=True)
class Served:
    """What services need, and other parts of the server too."""

    settings: ServerSettings
    clock: Clock
    server_id: str
    store: Store
    audit: AuditLog
    authorities: Authorities
    upstream: UpstreamAuthority | None
    above: UpstreamAuthorities
    local: LocalAuthorities
    own: OwnIdentity
    attest: AttestAgents
    fleet: Fleet
    registration: Registration
    followers: Followers
    progress: Progress
    federation: Federating
    workers: SigningWorkers
    door: FrontDoor
    ready: Callable[[], bool]


def rpc_services(parts: Served) -> tuple[grpc.GenericRpcHandler, ...]:
    """The services in the order of their packages; health last."""
    settings, store, audit, clock = parts.settings, parts.store, parts.audit, parts.clock
    trust_domain, federation, progress = settings.trust_domain, parts.federation, parts.progress
    orders = AuthorityOrders(
        authorities=parts.authorities,
        store=store,
        clock=clock,
        audit=audit,
        server_id=parts.server_id,
        new_id=new_id,
    )
    entry_ids = EntryIds(os.urandom)
    return (
        handlers(AGENT, AgentApi(parts.attest, parts.fleet)),
        handlers(ENTRY, EntryApi(parts.registration, progress, trust_domain=trust_domain, new_id=entry_ids)),
        handlers(SVID, SvidApi(*_signing(parts))),
        handlers(
            BUNDLE,
            BundleApi(
                TrustBundles(
                    store=store,
                    audit=audit,
                    trust_domain=trust_domain,
                    upstream=parts.upstream,
                    wit=settings.wit.enabled,
                ),
                FederatedBundles(store=store, audit=audit),
                trust_domain=trust_domain,
            ),
        ),
        handlers(
            TRUST_DOMAIN,
            TrustDomainApi(Federation(store=store, audit=audit, refresh=federation.refresh), trust_domain=trust_domain),
        ),
        handlers(FEDERATION, FederationApi(federation.refresh, federation.invitations)),
        handlers(LOGGER, LoggerApi(ServerLog(LogLevel(settings.log_level), audit))),
        handlers(DEBUG, DebugApi(ServerInfo(store=store, chain=lambda: parts.own.identity.chain, clock=clock))),
        handlers(LOCAL_AUTHORITY, LocalAuthorityApi(parts.local, parts.above)),
        handlers(AUTHORITY_ORDERS, AuthorityOrdersApi(orders)),
        handlers(
            PROPAGATION,
            PropagationApi(
                parts.followers,
                progress,
                parts.door.caller_of,
                in_force=InForce(store=store, progress=progress),
                trust_domain=trust_domain,
            ),
        ),
        handlers(
            EXPLAIN,
            ExplainApi(
                ExplainEntitlement(store=store, clock=clock, progress=progress),
                LintEntries(store=store, clock=clock, types=(*WORKLOAD_ATTESTORS.names(), *NODE_VERIFIERS.names())),
                trust_domain=trust_domain,
            ),
        ),
        handlers(HEALTH, HealthApi(parts.ready)),
    )


def _signing(parts: Served) -> tuple[IssueSvids, IssueTokens, Downstream]:
    settings, issuers = parts.settings, parts.authorities.issuers
    entitlements = Entitlements(store=parts.store, audit=parts.audit)
    issue = IssueSvids(
        entitlements=entitlements,
        issuer=parts.authorities.issuer,
        terms_of=terms_of,
        clock=parts.clock,
        audit=parts.audit,
        trust_domain=settings.trust_domain,
        signers=parts.workers if settings.ca.signing_workers else None,
    )
    tokens = IssueTokens(
        entitlements=entitlements,
        jwt=issuers.jwt,
        wit=issuers.wit,
        terms_of=lru_cache(MAX_TERMS)(token_terms_of),
        clock=parts.clock,
        audit=parts.audit,
        trust_domain=settings.trust_domain,
    )
    downstream = Downstream(
        issuer=parts.authorities.issuer,
        store=parts.store,
        audit=parts.audit,
        ca_ttl=int(settings.ca.ttl.total_seconds()),
    )
    return issue, tokens, downstream
