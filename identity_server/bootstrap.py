"""The composition root: settings in, a server that can be opened and closed out. Only here concrete classes are named.

`Server.assemble` opens what is on disk and gets an authority ready, `open_doors` lets callers in, `close` is the
ordered shutdown of architecture A7. `daemon` owns signals and the loops.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random  # noqa: TID251  # the rim: jitter is drawn here and passed down
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography import x509
from cryptography.x509.oid import NameOID

from attestors.api import NodeVerifier
from attestors.registry import NODE_VERIFIERS
from identity_server.audit_log import AuditFile
from identity_server.domain.rates import Rate
from identity_server.keys import DiskKeys, MemoryKeys, set_aside
from identity_server.monitoring import Parts, counted, metered, metrics_of, monitor, observers, rotations, traced_store
from identity_server.ports import KeyManager, UpstreamAuthority
from identity_server.rpc.agent_api import AgentApi
from identity_server.rpc.authority_orders_api import AuthorityOrdersApi
from identity_server.rpc.bundle_api import BundleApi
from identity_server.rpc.caller import AccessInterceptor, presented_by
from identity_server.rpc.debug_api import DebugApi
from identity_server.rpc.drain import Drain, DrainInterceptor
from identity_server.rpc.entry_api import EntryApi
from identity_server.rpc.health_api import SERVICE as HEALTH
from identity_server.rpc.health_api import HealthApi
from identity_server.rpc.local_authority_api import LocalAuthorityApi
from identity_server.rpc.logger_api import LoggerApi
from identity_server.rpc.services import (
    AGENT,
    AUTHORITY_ORDERS,
    BUNDLE,
    DEBUG,
    ENTRY,
    LOCAL_AUTHORITY,
    LOGGER,
    SVID,
    TRUST_DOMAIN,
)
from identity_server.rpc.svid_api import SvidApi, terms_of, token_terms_of
from identity_server.rpc.throttle import Throttle, ThrottleInterceptor, ThrottleSettings
from identity_server.rpc.trust_domain_api import TrustDomainApi
from identity_server.services.admission import Admissions
from identity_server.services.attest_agent import AttestAgents
from identity_server.services.authorities import Authorities, CaSettings, TokenSettings
from identity_server.services.authority_orders import AuthorityOrders
from identity_server.services.downstream import Downstream
from identity_server.services.entitlements import Entitlements
from identity_server.services.errands import Errands
from identity_server.services.federated_bundles import FederatedBundles
from identity_server.services.federation import Federation
from identity_server.services.fleet import Fleet
from identity_server.services.issue_svids import IssueSvids
from identity_server.services.issue_tokens import IssueTokens
from identity_server.services.local_authority import LocalAuthorities
from identity_server.services.lost_history import LostHistory
from identity_server.services.own_identity import OwnIdentity
from identity_server.services.registration import Registration
from identity_server.services.server_info import ServerInfo
from identity_server.services.server_log import ServerLog
from identity_server.services.trust_bundles import TrustBundles
from identity_server.services.upstream_authorities import UpstreamAuthorities
from identity_server.settings import CaSubject, Pkcs11Section, RateLimitSection, ServerSettings
from identity_server.signing.pool import SigningWorkers
from identity_server.store.database import Access
from identity_server.store.sql_store import SqlStore
from identity_server.upstream import upstream_of
from spiffe_core.clock import Clock, SystemClock
from spiffe_core.crypto.keys import KeyKind
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import ConfigError, CorruptState
from spiffe_core.runtime.durable import DirectoryLock, lock_directory, private_directory, read_private, write_durably
from spiffe_core.runtime.logs import LogLevel
from spiffe_core.runtime.monitor import Monitor
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.request_id import current_request_id
from spiffe_core.runtime.tracing import Tracing
from spiffe_core.runtime.tracing_setup import tracing_of
from spiffe_core.wire.calls import CallInterceptor
from spiffe_core.wire.convert import entry_to_proto
from spiffe_core.wire.front_door import FrontDoor, Limits, private_server
from spiffe_core.wire.services import handlers
from spiffe_core.wire.status import ErrorInterceptor
from spiffe_core.wire.tls import ServerTls

log = logging.getLogger(__name__)

SOCKET_MODE = 0o770
SOCKET_DIRECTORY_MODE = 0o750
FLUSH_SECONDS = 2.0
"""For so long clients may take to read what they were told last; who does not read is cut off."""
DRAIN_SECONDS = 8.0
_ID_BYTES = 64


@dataclass(slots=True)
class Server:
    """One identity server, put together."""

    settings: ServerSettings
    clock: Clock
    server_id: str
    lock: DirectoryLock
    audit: AuditFile
    store: SqlStore
    authorities: Authorities
    upstream: UpstreamAuthority | None
    above: UpstreamAuthorities
    errands: Errands
    lost_history: LostHistory
    own: OwnIdentity
    admissions: Admissions
    attest: AttestAgents
    registration: Registration
    fleet: Fleet
    door: FrontDoor
    grpc: grpc.aio.Server
    drain: Drain
    throttle: Throttle
    monitor: Monitor
    workers: SigningWorkers
    tracing: Tracing | None = None
    address: tuple[str, int] = ("", 0)

    @classmethod
    async def assemble(
        cls, settings: ServerSettings, *, clock: Clock | None = None, reset_keys: bool = False
    ) -> Server:
        """Open data directory, keys and database; start the authority; build the services. Opens no door yet.

        Raises:
            ConfigError, CorruptState, Unavailable: what is in the way and what to do about it.
        """
        time = clock or SystemClock()
        async with contextlib.AsyncExitStack() as undo:
            private_directory(settings.data_dir)
            lock = lock_directory(settings.data_dir)
            undo.callback(lock.close)
            server_id = _server_id(settings.data_dir)
            audit = AuditFile(
                Path(settings.audit.file) if settings.audit.file else None, time.now, strict=settings.audit.strict
            )
            undo.callback(audit.close)
            keys = await _open_keys(settings, server_id, time, reset_keys=reset_keys)
            store = await _open_store(settings, server_id, time)
            undo.push_async_callback(store.close)
            await store.start()
            server = await _compose(settings, time, server_id, lock, audit, keys, store, reset_keys, undo)
            undo.pop_all()
            return server

    @property
    def serving(self) -> bool:
        """Whether the server can do its work: an authority signs, the database is followed, and it is not going down."""
        return self.monitor.report().ready

    async def open_doors(self) -> None:
        """Let callers in: the admin socket, then the agents' port.

        Raises:
            ConfigError: a socket or port is taken or may not be used.
        """
        self.monitor.open()
        await self.grpc.start()
        self.door.listen_unix(self.settings.socket_path, mode=SOCKET_MODE, dir_mode=SOCKET_DIRECTORY_MODE)
        tls = ServerTls(lambda: self.own.identity, lambda: self.own.trusted, self.clock.now)
        self.address = self.door.listen_tcp(self.settings.bind_address, self.settings.bind_port, tls)

    def dismiss_strangers(self) -> int:
        """Cut the connections that no call can use any more: banned agents, expired or revoked certificates."""
        return self.door.close_where(lambda peer: self.admissions.speaks_for_nobody(presented_by(peer)))

    async def close(self) -> None:
        """The ordered shutdown: nobody new, waiting streams are told, calls in flight finish, then the store."""
        self.drain.begin()
        self.door.stop_accepting()
        await self.grpc.stop(DRAIN_SECONDS)
        await self.door.emptied(FLUSH_SECONDS)
        await self.door.close()
        await self.workers.close()
        await self.admissions.settled()
        if self.upstream is not None:
            await self.upstream.close()
        await self.store.close()
        self.monitor.close()
        if self.tracing is not None:
            self.tracing.close()
        self.audit.close()
        self.lock.close()


@contextlib.asynccontextmanager
async def running(
    settings: ServerSettings, *, clock: Clock | None = None, reset_keys: bool = False
) -> AsyncIterator[Server]:
    """A server with open doors and no loops, closed at the end of the block."""
    server = await Server.assemble(settings, clock=clock, reset_keys=reset_keys)
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
        store, keys, clock, audit, _ca_settings(settings, server_id, reset_keys=reset_keys), os.urandom, upstream
    )
    await authorities.start()
    issuer = authorities.issuer
    offload = Offload("attest", 16)
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
    admissions = Admissions(store=store, clock=clock)
    registration = Registration(store=store, clock=clock, audit=audit)
    fleet = Fleet(store=store, clock=clock, audit=audit, trust_domain=trust_domain, new_token=_new_id)
    attest = AttestAgents(
        store=store,
        issuer=issuer,
        verifiers=_verifiers(settings, clock),
        offload=offload,
        clock=clock,
        audit=audit,
        trust_domain=trust_domain,
        agent_ttl=int(settings.agent_ttl.total_seconds()),
        new_id=_new_id,
    )
    entitlements = Entitlements(store=store, audit=audit)
    tokens = IssueTokens(
        entitlements=entitlements,
        jwt=authorities.issuers.jwt,
        wit=authorities.issuers.wit,
        terms_of=token_terms_of,
        clock=clock,
        audit=audit,
        trust_domain=trust_domain,
    )
    local = LocalAuthorities(
        authorities=authorities,
        store=store,
        clock=clock,
        audit=audit,
        trust_domain=trust_domain,
        server_id=server_id,
        new_id=_new_id,
    )
    orders = AuthorityOrders(
        authorities=authorities, store=store, clock=clock, audit=audit, server_id=server_id, new_id=_new_id
    )
    above = UpstreamAuthorities(
        upstream=upstream,
        authorities=authorities,
        store=store,
        clock=clock,
        audit=audit,
        trust_domain=trust_domain,
        server_id=server_id,
        new_id=_new_id,
    )
    downstream = Downstream(issuer=issuer, store=store, audit=audit, ca_ttl=int(settings.ca.ttl.total_seconds()))
    workers = SigningWorkers(settings.ca.signing_workers, clock)
    undo.push_async_callback(workers.close)
    workers.start()
    issue = IssueSvids(
        entitlements=entitlements,
        issuer=issuer,
        terms_of=terms_of,
        clock=clock,
        audit=audit,
        trust_domain=trust_domain,
        default_ttl=int(settings.svid.default_x509_ttl.total_seconds()),
        signers=workers if settings.ca.signing_workers else None,
    )
    drain = Drain()
    door = FrontDoor(
        limits=Limits(
            connections=settings.limits.connections,
            connections_per_uid=settings.limits.connections_per_uid,
            handshake_seconds=settings.limits.handshake_seconds,
        )
    )
    undo.push_async_callback(door.close)
    throttle = Throttle(_rates(settings.ratelimit), clock)

    def upstream_error() -> str | None:
        error = above.last_error
        return None if upstream is None else error.public if error is not None else ""

    looked_at = Parts(settings, clock, database, authorities, own, sink, drain, door, throttle, upstream_error)
    watch = monitor(looked_at, metrics)
    undo.callback(watch.close)
    services = (
        handlers(AGENT, AgentApi(attest, fleet)),
        handlers(ENTRY, EntryApi(registration, trust_domain=trust_domain, new_id=_new_id)),
        handlers(SVID, SvidApi(issue, tokens, downstream)),
        handlers(
            BUNDLE,
            BundleApi(
                TrustBundles(store=store, audit=audit, trust_domain=trust_domain, upstream=upstream),
                FederatedBundles(store=store, audit=audit),
                trust_domain=trust_domain,
            ),
        ),
        handlers(TRUST_DOMAIN, TrustDomainApi(Federation(store=store, audit=audit), trust_domain=trust_domain)),
        handlers(LOGGER, LoggerApi(ServerLog(LogLevel(settings.log_level), audit))),
        handlers(DEBUG, DebugApi(ServerInfo(store=store, chain=lambda: own.identity.chain, clock=clock))),
        handlers(LOCAL_AUTHORITY, LocalAuthorityApi(local, above)),
        handlers(AUTHORITY_ORDERS, AuthorityOrdersApi(orders)),
        handlers(HEALTH, HealthApi(lambda: watch.report().ready)),
    )
    rpc = private_server(
        door,
        services,
        [
            CallInterceptor(observers(metrics, sink), clock.monotonic, tracing),
            ErrorInterceptor(current_request_id),
            AccessInterceptor(door.caller_of, admissions),
            ThrottleInterceptor(door.caller_of, throttle),
            DrainInterceptor(drain),
        ],
        max_connection_age=settings.limits.connection_age_seconds,
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
        lost_history=LostHistory(store=store, clock=clock, audit=audit, trust_domain=trust_domain, server_id=server_id),
        own=own,
        admissions=admissions,
        attest=attest,
        registration=registration,
        fleet=fleet,
        door=door,
        grpc=rpc,
        drain=drain,
        throttle=throttle,
        monitor=watch,
        workers=workers,
        tracing=tracing,
    )


async def _open_store(settings: ServerSettings, server_id: str, clock: Clock) -> SqlStore:
    """On a thread: a database server may take its time, and signals must be heard meanwhile."""
    database = settings.database
    return await Offload("store-open", 1)(
        SqlStore.open,
        settings.database_place,
        trust_domain=settings.trust_domain,
        server_id=server_id,
        encode=_encode,
        clock=clock,
        access=Access(
            password_file=database.password_file,
            tls=database.tls,
            tls_ca_file=database.tls_ca_file,
            tls_cert_file=database.tls_cert_file,
            tls_key_file=database.tls_key_file,
        ),
    )


def _encode(entry: RegistrationEntry) -> bytes:
    return entry_to_proto(entry).SerializeToString(deterministic=True)


def _new_id() -> str:
    return str(uuid.uuid4())


def _verifiers(settings: ServerSettings, clock: Clock) -> dict[str, NodeVerifier]:
    """Join tokens, and each node attestor that has a table in the configuration."""
    tables: dict[str, dict[str, Any]] = {"join_token": {}, **settings.attestors}
    return {
        name: NODE_VERIFIERS.build(name, options, _verifier_ports(name, settings, clock))
        for name, options in tables.items()
    }


def _verifier_ports(name: str, settings: ServerSettings, clock: Clock) -> object | None:
    """What an attestor needs besides its table; imported only if it is configured."""
    if name == "x509pop":
        from attestors.node.x509pop import VerifierPorts

        return VerifierPorts(settings.trust_domain, clock.now)
    return None


async def _open_keys(settings: ServerSettings, server_id: str, clock: Clock, *, reset_keys: bool) -> KeyManager:
    """On a thread if they are in a token, which may take its time."""
    if settings.ca.key_manager == "memory":
        return MemoryKeys()
    if settings.ca.pkcs11 is not None:
        return await Offload("keys-open", 1)(_token_keys, settings.ca.pkcs11, settings.data_dir, server_id, clock)
    path = settings.data_dir / "keys.json"
    aside = set_aside(path) if reset_keys else None
    if aside is not None:
        log.warning("the authority keys were set aside as %s; new ones are made", aside)
    return DiskKeys(path)


def _token_keys(section: Pkcs11Section, data_dir: Path, server_id: str, clock: Clock) -> KeyManager:
    """`--reset-keys` has nothing to set aside here: keys of ours that are still in the token stay in use."""
    try:
        from identity_server.keys.pkcs11 import Pkcs11Keys
        from identity_server.keys.token_link import TokenAddress
    except ModuleNotFoundError as error:
        raise ConfigError(
            'ca.key_manager: "pkcs11" needs the package python-pkcs11; install Muniment as muniment[pkcs11]',
            field="ca.key_manager",
        ) from error
    address = TokenAddress(
        module=section.module,
        pin_file=section.pin_file,
        refused=data_dir / "pkcs11-pin-refused",
        token=section.token,
        slot=section.slot,
    )
    return Pkcs11Keys(address, prefix=section.key_label_prefix, server_id=server_id, monotonic=clock.monotonic)


def _ca_settings(settings: ServerSettings, server_id: str, *, reset_keys: bool) -> CaSettings:
    return CaSettings(
        trust_domain=settings.trust_domain,
        server_id=server_id,
        ca_ttl=settings.ca.ttl,
        key_kind=KeyKind(settings.ca.key_type),
        subject=_subject(settings.ca.subject),
        x509_ttl=settings.svid.default_x509_ttl,
        agent_ttl=settings.agent_ttl,
        jwt=_jwt_settings(settings),
        wit=_wit_settings(settings),
        reset_keys=reset_keys,
    )


def _jwt_settings(settings: ServerSettings) -> TokenSettings | None:
    if settings.jwt.disabled:
        return None
    kind = KeyKind(settings.jwt.key_type or settings.ca.key_type)
    return TokenSettings(settings.jwt.default_ttl, kind, settings.jwt.issuer)


def _wit_settings(settings: ServerSettings) -> TokenSettings | None:
    if not settings.wit.enabled:
        return None
    return TokenSettings(settings.wit.default_ttl, KeyKind(settings.wit.key_type or settings.ca.key_type))


def _rates(section: RateLimitSection) -> ThrottleSettings:
    return ThrottleSettings(
        attestation=Rate(section.attestation_per_second, section.attestation_burst) if section.attestation else None,
        signing=Rate(section.signing_per_second, section.signing_burst) if section.signing else None,
        wait_seconds=section.wait_seconds,
    )


def _subject(subject: CaSubject) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COUNTRY_NAME, text) for text in subject.country]
    parts += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, text) for text in subject.organization]
    if subject.common_name:
        parts.append(x509.NameAttribute(NameOID.COMMON_NAME, subject.common_name))
    return x509.Name(parts)


def _server_id(data_dir: Path) -> str:
    """This server's name in the database (architecture A15): made once, kept in the data directory."""
    path = data_dir / "server-id"
    try:
        text = read_private(path, max_bytes=_ID_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        fresh = _new_id()
        write_durably(path, f"{fresh}\n".encode())
        return fresh
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise CorruptState(
            f"{path}: does not hold this server's id; restore it from a backup, or delete it to join the database as a "
            "new server with a new authority",
            path=str(path),
        ) from None
