"""The composition root: settings in, a server that can be opened and closed out. Only here concrete classes are named.

`assemble` opens what is on disk and gets an authority ready; `Server.open_doors` lets callers in, `Server.close` is the
ordered shutdown of architecture A7. `daemon` owns signals and the loops.
"""

from __future__ import annotations

import contextlib
import os
import random  # noqa: TID251  # the rim: jitter is drawn here and passed down
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

from identity_server.audit_log import AuditFile
from identity_server.domain.server_settings import IssuingSettings
from identity_server.federating import federating
from identity_server.monitoring import (
    Parts,
    counted,
    metered,
    metrics_of,
    monitor,
    observers,
    publishings,
    rotations,
    traced_store,
)
from identity_server.opening import (
    ca_settings,
    new_id,
    node_verifiers,
    open_keys,
    open_store,
    progress_of,
    server_id_of,
    throttle_settings,
)
from identity_server.ports import KeyManager
from identity_server.publish import targets_of
from identity_server.rpc.caller import AccessInterceptor
from identity_server.rpc.carried_position import PositionInterceptor
from identity_server.rpc.drain import Drain, DrainInterceptor
from identity_server.rpc.propagation_api import LASTING
from identity_server.rpc.throttle import Throttle, ThrottleInterceptor
from identity_server.rpc_services import Served, rpc_services
from identity_server.server import Server
from identity_server.services.abreast import Abreast
from identity_server.services.absent_servers import AbsentServers
from identity_server.services.admission import Admissions
from identity_server.services.attest_agent import AttestAgents
from identity_server.services.authorities import Authorities
from identity_server.services.errands import Errands
from identity_server.services.fleet import Fleet
from identity_server.services.followers import Followers
from identity_server.services.local_authority import LocalAuthorities
from identity_server.services.lost_history import LostHistory
from identity_server.services.own_identity import OwnIdentity
from identity_server.services.publish_bundle import PublishBundle
from identity_server.services.registration import Registration
from identity_server.services.server_agreement import ServerAgreement
from identity_server.services.upstream_authorities import UpstreamAuthorities
from identity_server.settings import ServerSettings
from identity_server.signing.pool import SigningWorkers
from identity_server.store.sql_store import SqlStore
from identity_server.upstream import upstream_of
from identity_server.web_endpoints import published
from spiffe_core.clock import Clock, SystemClock
from spiffe_core.crypto.keys import KeyKind
from spiffe_core.runtime.durable import DirectoryLock, lock_directory, private_directory
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.request_id import current_request_id
from spiffe_core.runtime.tracing_setup import tracing_of
from spiffe_core.wire.calls import CallInterceptor
from spiffe_core.wire.channels import LAST_CALLS_SECONDS
from spiffe_core.wire.door_server import AGENT_LANES, private_server
from spiffe_core.wire.front_door import FrontDoor, Limits
from spiffe_core.wire.status import ErrorInterceptor


async def assemble(settings: ServerSettings, *, clock: Clock | None = None, reset_keys: bool = False) -> Server:
    """Open data directory, keys and database; start the authority; build the services. Opens no door yet.

    Raises:
        ConfigError, CorruptState, Unavailable: what is in the way and what to do about it.
    """
    time = clock or SystemClock()
    async with contextlib.AsyncExitStack() as undo:
        private_directory(settings.data_dir)
        lock = lock_directory(settings.data_dir)
        undo.callback(lock.close)
        server_id = server_id_of(settings.data_dir)
        audit = AuditFile(
            Path(settings.audit.file) if settings.audit.file else None, time.now, strict=settings.audit.strict
        )
        undo.callback(audit.close)
        keys = await open_keys(settings, server_id, time, reset_keys=reset_keys)
        store = await open_store(settings, server_id, time)
        undo.push_async_callback(store.close)
        await store.start()
        server = await _compose(settings, time, server_id, lock, audit, keys, store, reset_keys, undo)
        undo.pop_all()
        return server


@contextlib.asynccontextmanager
async def running(
    settings: ServerSettings, *, clock: Clock | None = None, reset_keys: bool = False
) -> AsyncIterator[Server]:
    """A server with open doors and no loops, closed at the end of the block."""
    server = await assemble(settings, clock=clock, reset_keys=reset_keys)
    try:
        await server.open_doors()
        yield server
    finally:
        await server.close()


async def _compose(  # the one place where everything has a name
    settings: ServerSettings,
    clock: Clock,
    server_id: str,
    lock: DirectoryLock,
    sink: AuditFile,
    keys: KeyManager,
    database: SqlStore,
    reset_keys: bool,
    undo: contextlib.AsyncExitStack,
) -> Server:
    trust_domain = settings.trust_domain
    metrics = metrics_of(settings)
    tracing = tracing_of(settings.tracing, "identity-server", version("muniment"))
    if tracing is not None:
        undo.callback(tracing.close)
    audit, store = counted(sink, metrics, clock), traced_store(metered(database, metrics, clock), tracing)
    upstream = upstream_of(settings.upstream, trust_domain, clock)
    if upstream is not None:
        undo.push_async_callback(upstream.close)
        await upstream.start()
    authorities = Authorities(
        store, keys, clock, audit, ca_settings(settings, server_id, reset_keys=reset_keys), os.urandom, upstream
    )
    await authorities.start()
    agreement = ServerAgreement(
        store=store,
        clock=clock,
        server_id=server_id,
        settings=IssuingSettings.of(settings.issuing()),
        apply=authorities.issuers.use_defaults,
    )
    await agreement.tick()
    issuer = authorities.issuer
    offload = Offload("own-identity", 1)
    own = OwnIdentity(
        store=store,
        issuer=issuer,
        clock=clock,
        audit=audit,
        trust_domain=trust_domain,
        key_kind=KeyKind.EC_P256 if settings.ca.post_quantum else KeyKind(settings.ca.key_type),
        jitter=lambda: random.uniform(-1, 1),  # noqa: S311  # spreads load, guards nothing
        offload=offload,
        on_renewed=rotations(metrics),
    )
    await own.tick()
    endpoints = published(settings, store, own, clock)
    shown = endpoints.watch
    publishing = PublishBundle(
        watch=shown,
        newest=lambda: shown.value,
        orders=targets_of(settings.publish),
        clock=clock,
        jitter=lambda: random.uniform(-1, 1),  # noqa: S311  # spreads load, guards nothing
        observe=publishings(metrics),
    )
    admissions = Admissions(store=store, clock=clock)
    registration = Registration(store=store, clock=clock, audit=audit)
    followers = Followers(store=store, admissions=admissions, clock=clock)
    progress, shared = progress_of(settings, server_id, store, followers, authorities, clock)
    fleet = Fleet(store=store, clock=clock, audit=audit, trust_domain=trust_domain, new_token=new_id)
    attest = AttestAgents(
        store=store,
        issuer=issuer,
        verifiers=node_verifiers(settings, clock),
        clock=clock,
        audit=audit,
        trust_domain=trust_domain,
        new_id=new_id,
    )
    local = LocalAuthorities(
        authorities=authorities,
        store=store,
        clock=clock,
        audit=audit,
        trust_domain=trust_domain,
        server_id=server_id,
        new_id=new_id,
    )
    above = UpstreamAuthorities(
        upstream=upstream,
        authorities=authorities,
        store=store,
        clock=clock,
        audit=audit,
        trust_domain=trust_domain,
        server_id=server_id,
        new_id=new_id,
    )
    workers = SigningWorkers(settings.ca.signing_workers, clock)
    undo.push_async_callback(workers.close)
    workers.start()
    federation = federating(settings.federation, store=store, audit=audit, clock=clock, own=own, metrics=metrics)
    abreast = Abreast(store.state, database.head)
    drain = Drain()
    door = FrontDoor(
        limits=Limits(
            connections=settings.limits.connections,
            connections_per_uid=settings.limits.connections_per_uid,
            handshake_seconds=settings.limits.handshake_seconds,
        ),
        lanes=AGENT_LANES,
    )
    undo.push_async_callback(door.close)
    throttle = Throttle(throttle_settings(settings.ratelimit), clock)

    def upstream_error() -> str | None:
        error = above.last_error
        return None if upstream is None else error.public if error is not None else ""

    looked_at = Parts(
        settings=settings,
        clock=clock,
        store=database,
        authorities=authorities,
        agreement=agreement,
        own=own,
        audit=sink,
        drain=drain,
        door=door,
        throttle=throttle,
        abreast=abreast,
        upstream_error=upstream_error,
        publishing=publishing,
        endpoint_troubles=endpoints.troubles,
    )
    watch = monitor(looked_at, metrics)
    undo.callback(watch.close)
    services = rpc_services(
        Served(
            settings=settings,
            clock=clock,
            server_id=server_id,
            store=store,
            audit=audit,
            authorities=authorities,
            upstream=upstream,
            above=above,
            local=local,
            own=own,
            attest=attest,
            fleet=fleet,
            registration=registration,
            followers=followers,
            progress=progress,
            federation=federation,
            workers=workers,
            door=door,
            ready=lambda: watch.report().ready,
        )
    )
    rpc = private_server(
        door,
        services,
        [
            CallInterceptor(observers(metrics, sink), clock.monotonic, tracing),
            ErrorInterceptor(current_request_id),
            AccessInterceptor(door.caller_of, admissions),
            PositionInterceptor(abreast, trust_domain),
            ThrottleInterceptor(door.caller_of, throttle),
            DrainInterceptor(drain, settings.limits.connection_age_seconds + LAST_CALLS_SECONDS, LASTING),
        ],
        max_connection_age=settings.limits.connection_age_seconds,
        max_stream_age=settings.limits.push_stream_age_seconds,
        max_message=settings.limits.request_bytes,
    )
    return Server(
        settings=settings,
        clock=clock,
        server_id=server_id,
        lock=lock,
        audit=sink,
        store=database,
        authorities=authorities,
        upstream=upstream,
        above=above,
        errands=Errands(authorities=authorities, local=local, store=store, clock=clock, server_id=server_id),
        agreement=agreement,
        absent=AbsentServers(store=store, clock=clock, audit=audit, server_id=server_id),
        lost_history=LostHistory(store=store, clock=clock, audit=audit, trust_domain=trust_domain, server_id=server_id),
        own=own,
        publishing=publishing,
        admissions=admissions,
        attest=attest,
        registration=registration,
        fleet=fleet,
        followers=followers,
        refresh=federation.refresh,
        abreast=abreast,
        progress=progress,
        shared=shared,
        door=door,
        grpc=rpc,
        drain=drain,
        throttle=throttle,
        monitor=watch,
        workers=workers,
        published=endpoints,
        tracing=tracing,
    )
