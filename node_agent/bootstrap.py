"""Settings to objects: the one place that names concrete classes."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence

from attestors.api import WorkloadAttestor
from attestors.holders import holders
from node_agent.agent import Agent
from node_agent.change_stream import ChangeStream
from node_agent.monitoring import (
    Parts,
    metered,
    metered_attestation,
    metered_attestors,
    metered_changes,
    metrics_of,
    monitor,
    observers,
)
from node_agent.opening import (
    broker_endpoint,
    check_pidfd,
    check_strict,
    credentials_of,
    explanations,
    first_contact_of,
    load_state,
    own_files,
    own_seed,
    secret_discovery,
    with_bundle,
    workload_attestors,
)
from node_agent.rpc.admin_socket import AdminSocket
from node_agent.rpc.debug_api import AgentInfo, DebugApi
from node_agent.rpc.delegated_identity import DelegatedIdentity
from node_agent.rpc.explain_api import ExplainApi, RefusalIds
from node_agent.rpc.logger_api import LoggerApi
from node_agent.server_client import ServerClient
from node_agent.services.attest_workload import AttestWorkload
from node_agent.services.callers import Callers, Holders
from node_agent.services.follow_server import FollowServer
from node_agent.services.jwt_svids import JwtSvids
from node_agent.services.membership import Membership
from node_agent.services.node_record import NodeRecord
from node_agent.services.renew_svids import RenewSvids
from node_agent.services.steady_time import SteadyTime
from node_agent.services.synchronize import Synchronize
from node_agent.services.wit_svids import WitSvids
from node_agent.services.workload_svids import WorkloadSvids
from node_agent.settings import AgentSettings
from node_agent.state_dir import StateDirectory
from spiffe_core.clock import Clock, SystemClock
from spiffe_core.runtime.logs import LogLevel
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.request_id import current_request_id
from spiffe_core.runtime.tracing_setup import tracing_of
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire.calls import CallInterceptor
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.front_door import FrontDoor, Limits
from spiffe_core.wire.http2_meter import Rates
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.servers import Servers
from spiffe_core.wire.status import ErrorInterceptor
from spiffe_core.wire.tls import TlsIdentity
from workload_api.service import WorkloadApi, WorkloadApiSettings
from workload_api.streams import StreamLimits, Streams

log = logging.getLogger(__name__)

VERSION = "muniment/0.1.0"
SERVER_PATH = "/spire/server"
ADMIN_CONNECTIONS = 256
STARTING_SECONDS = 3.0
"""After the agent's own start its servers may still be starting: for so long nobody listening there is no failure."""
_UNFINISHED_REQUESTS = 3
"""So many times what a user may have under way he may have half sent; an honest client sends a request in one go."""


def build(
    settings: AgentSettings,
    *,
    clock: Clock | None = None,
    attestors: Sequence[WorkloadAttestor] | None = None,
    draw: Callable[[], float] | None = None,
) -> Agent:
    """Compose an agent. Tests pass doubles by keyword; the daemon passes settings.

    Raises:
        ConfigError, CorruptState, Conflict: the agent cannot start; the message says what to do.
    """
    clock = clock or SystemClock()
    draw = draw or _jitter
    for warning in settings.warnings():
        log.warning("%s", warning)
    check_pidfd(settings)
    check_strict(settings)
    chosen = attestors or workload_attestors(settings)
    state = StateDirectory.open(settings.data_dir, keys=settings.key_manager == "disk")
    try:
        return _compose(settings, state, chosen, clock, draw)
    except BaseException:
        state.close()
        raise


def _compose(
    settings: AgentSettings,
    directory: StateDirectory,
    attestors: Sequence[WorkloadAttestor],
    clock: Clock,
    draw: Callable[[], float],
) -> Agent:
    first_contact = first_contact_of(settings)
    state = with_bundle(settings, load_state(settings, directory), first_contact, clock)
    steady = SteadyTime(clock)
    node = NodeRecord(state, directory, Offload("state", 1))
    metrics = metrics_of(settings)
    tracing = tracing_of(settings.tracing, "node-agent", VERSION.rpartition("/")[2])
    connection = _client(settings, node, clock, draw)
    client = metered(connection, metrics, clock)
    attestation = AttestWorkload(
        metered_attestors(attestors, metrics, clock), clock=clock, budget=settings.limits.attestation_seconds
    )
    callers = Callers(attestation, Holders(holders, clock) if settings.strict else None)
    workloads = WorkloadSvids(
        settings.trust_domain,
        metered_attestation(callers, metrics, clock),
        clock=clock,
        steady=steady,
        idle=settings.limits.prefetched_svids,
    )
    membership = Membership(
        node=node,
        enrolment=client,
        credentials=credentials_of(settings),
        first_contact=first_contact,
        patience=settings.patience,
        clock=clock,
        steady=steady,
        draw=draw,
        on_ban=workloads.ban,
    )
    renewals = RenewSvids(
        server=client,
        membership=membership,
        workloads=workloads,
        clock=clock,
        steady=steady,
        draw=draw,
        offload=Offload("keys", 2),
        key_kind=settings.key_kind,
        prefetch=settings.limits.prefetched_svids,
        availability=settings.availability_target,
    )
    synchronize = Synchronize(
        server=client,
        membership=membership,
        workloads=workloads,
        renewals=renewals,
        steady=steady,
        draw=draw,
        interval=settings.sync_interval.total_seconds(),
        version=VERSION,
    )
    limits = settings.limits
    jwt = wit = None
    if not settings.jwt.disabled:
        jwt = JwtSvids(
            server=client,
            membership=membership,
            workloads=workloads,
            clock=clock,
            steady=steady,
            draw=draw,
            most=limits.jwt_svids,
        )
        jwt.on_unknown_authority = synchronize.request
    if settings.wit.enabled:
        wit = WitSvids(server=client, membership=membership, workloads=workloads, clock=clock, steady=steady, draw=draw)
    for tokens in (jwt, wit):
        if tokens is not None:
            workloads.on_bundle.append(tokens.follow_bundle)
            workloads.on_ban.append(tokens.forget)
    rates = Rates(unfinished=_UNFINISHED_REQUESTS * (limits.streams_per_uid + limits.calls_per_uid))
    bounds = Limits(connections=limits.connections, connections_per_uid=limits.connections_per_uid, rates=rates)
    door = FrontDoor(limits=bounds, strict=settings.strict)
    held_open = StreamLimits(per_uid=limits.streams_per_uid, total=limits.streams, calls_per_uid=limits.calls_per_uid)
    api = WorkloadApi(
        workloads,
        door.caller_of,
        clock,
        jwt=jwt,
        wit=wit,
        settings=WorkloadApiSettings(
            allow_unauthenticated_verifiers=settings.allow_unauthenticated_verifiers,
            wait_for_identity=settings.wait_for_identity,
            foreign_claims=frozenset(settings.jwt.allowed_foreign_claims),
            jwt_key_use=settings.jwt.key_use,
            limits=held_open,
        ),
        cut=lambda peer: door.close_where(lambda other: other is peer),
    )
    follow = None
    if settings.push:
        follow = FollowServer(
            changes=metered_changes(ChangeStream(settings.trust_domain, connection.calls), metrics),
            membership=membership,
            synchronize=synchronize,
            workloads=workloads,
            steady=steady,
            draw=draw,
            written=api.streams.written,
        )
    sds = None if settings.sds.disabled else secret_discovery(settings, api, door, clock)
    admin_door = FrontDoor(limits=Limits(connections=ADMIN_CONNECTIONS), strict=settings.strict)
    admin_streams = Streams(workloads, held_open)

    def look() -> AgentInfo:
        svid = node.state.svid
        return AgentInfo(
            svid_chain=() if svid is None else svid.chain,
            uptime_seconds=int(clock.monotonic() - started),
            last_sync_success=synchronize.last_success,
            x509_svids=len(workloads.all_held()),
            jwt_svids=0 if jwt is None else len(jwt),
        )

    started = clock.monotonic()
    delegates = DelegatedIdentity(workloads, jwt, admin_streams, admin_door.caller_of, settings.authorized_delegates)
    parts = Parts(settings, clock, steady, node, membership, synchronize, workloads, jwt, door, api, follow, attestors)
    explain = explanations(parts, client, attestation, clock, steady)
    services = [
        delegates.handler(),
        DebugApi(look).handler(),
        LoggerApi(LogLevel(settings.log_level)).handler(),
        ExplainApi(explain, admin_door.caller_of).handler(),
    ]
    interceptors = [CallInterceptor(observers(metrics), clock.monotonic, tracing), ErrorInterceptor(current_request_id)]
    admin = AdminSocket(settings.admin_socket, admin_door, admin_streams, services, interceptors)
    broker = broker_endpoint(settings, attestors, node, workloads, jwt, clock, interceptors)
    return Agent(
        settings,
        directory,
        connection,
        membership,
        synchronize,
        renewals,
        workloads,
        follow,
        jwt,
        door,
        api,
        sds,
        admin,
        broker,
        own_files(settings, clock),
        monitor(parts, metrics),
        parts,
        [*interceptors, RefusalIds(door.caller_of, explain.refused)],
        tracing,
    )


def _client(settings: AgentSettings, node: NodeRecord, clock: Clock, draw: Callable[[], float]) -> ServerClient:
    server_id = SpiffeId(settings.trust_domain, SERVER_PATH)

    def trust() -> DialTrust:
        return DialTrust(server_id, node.state.bundle_of)

    def first_trust() -> DialTrust:
        unproven = node.state.bundle is None and settings.insecure_bootstrap
        return DialTrust(server_id, None if unproven else node.anchors_of)

    def identity() -> TlsIdentity | None:
        svid = node.state.svid
        return None if svid is None else TlsIdentity(svid.chain, svid.key)

    servers = Servers(settings.servers, seed=own_seed(settings), draw=draw, starting_seconds=STARTING_SECONDS)

    def dialer(whom: Callable[[], DialTrust], who: Callable[[], TlsIdentity | None]) -> Dialer:
        return Dialer.among(servers, trust=whom, identity=who, now=clock.now)

    return ServerClient(
        settings.trust_domain, anonymous=dialer(first_trust, lambda: None), member=dialer(trust, identity)
    )


def _jitter() -> float:
    return secrets.SystemRandom().uniform(-1.0, 1.0)
