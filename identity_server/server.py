"""An identity server, put together: the order in which its doors open and everything closes (architecture A7)."""

from __future__ import annotations

from dataclasses import dataclass

from identity_server.audit_log import AuditFile
from identity_server.ports import UpstreamAuthority
from identity_server.rpc.caller import presented_by
from identity_server.rpc.drain import Drain
from identity_server.rpc.throttle import Throttle
from identity_server.services.abreast import Abreast
from identity_server.services.absent_servers import AbsentServers
from identity_server.services.admission import Admissions
from identity_server.services.attest_agent import AttestAgents
from identity_server.services.authorities import Authorities
from identity_server.services.bundle_refresh import BundleRefresh
from identity_server.services.errands import Errands
from identity_server.services.fleet import Fleet
from identity_server.services.followers import Followers
from identity_server.services.lost_history import LostHistory
from identity_server.services.own_identity import OwnIdentity
from identity_server.services.progress import Progress
from identity_server.services.publish_bundle import PublishBundle
from identity_server.services.registration import Registration
from identity_server.services.server_agreement import ServerAgreement
from identity_server.services.shared_progress import SharedProgress
from identity_server.services.upstream_authorities import UpstreamAuthorities
from identity_server.settings import ServerSettings
from identity_server.signing.pool import SigningWorkers
from identity_server.store.sql_store import SqlStore
from identity_server.web_endpoints import Published
from spiffe_core.clock import Clock
from spiffe_core.runtime.durable import DirectoryLock
from spiffe_core.runtime.monitor import Monitor
from spiffe_core.runtime.tracing import Tracing
from spiffe_core.wire.door_server import DoorServer
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.tls import ServerTls

SOCKET_MODE = 0o770
SOCKET_DIRECTORY_MODE = 0o750
FLUSH_SECONDS = 2.0
"""For so long clients may take to read what they were told last; who does not read is cut off."""
DRAIN_SECONDS = 8.0
SETTLE_SECONDS = 2.0
"""So long the end waits for what is written behind; a database that is silent would hold it up for half a minute."""


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
    agreement: ServerAgreement
    absent: AbsentServers
    lost_history: LostHistory
    own: OwnIdentity
    publishing: PublishBundle
    admissions: Admissions
    attest: AttestAgents
    registration: Registration
    fleet: Fleet
    followers: Followers
    refresh: BundleRefresh
    abreast: Abreast
    progress: Progress
    shared: SharedProgress | None
    door: FrontDoor
    grpc: DoorServer
    drain: Drain
    throttle: Throttle
    monitor: Monitor
    workers: SigningWorkers
    published: Published
    tracing: Tracing | None = None
    address: tuple[str, int] = ("", 0)

    @property
    def serving(self) -> bool:
        """Whether the server can do its work: an authority signs, the database is followed, it is not going down."""
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
        self.published.web.open()

    def dismiss_strangers(self) -> int:
        """Cut the connections that no call can use any more: banned agents, expired or revoked certificates."""
        return self.door.close_where(lambda peer: self.admissions.speaks_for_nobody(presented_by(peer)))

    async def close(self) -> None:
        """The ordered shutdown: nobody new, waiting streams are told, calls in flight finish, then the store."""
        self.drain.begin()
        self.door.stop_accepting()
        self.published.web.stop()
        await self.grpc.stop(DRAIN_SECONDS)
        await self.door.emptied(FLUSH_SECONDS)
        await self.door.close()
        await self.published.web.close()
        await self.workers.close()
        await self.admissions.settled(SETTLE_SECONDS)
        if self.upstream is not None:
            await self.upstream.close()
        if self.shared is not None:
            await self.shared.leave()
        await self.store.close()
        self.monitor.close()
        if self.tracing is not None:
            self.tracing.close()
        self.audit.close()
        self.lock.close()
