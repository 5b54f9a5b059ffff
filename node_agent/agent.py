"""A node agent, put together: the order in which it opens, works, drains and closes (architecture A7)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc.aio

from node_agent.monitoring import Parts
from node_agent.rpc.admin_socket import AdminSocket
from node_agent.rpc.broker_endpoint import BrokerEndpoint
from node_agent.rpc.health import SERVICE as HEALTH
from node_agent.rpc.health import Health
from node_agent.server_client import ServerClient
from node_agent.services.follow_server import FollowServer
from node_agent.services.jwt_svids import JwtSvids
from node_agent.services.membership import Membership
from node_agent.services.renew_svids import RenewSvids
from node_agent.services.synchronize import Synchronize
from node_agent.services.workload_svids import WorkloadSvids
from node_agent.settings import AgentSettings
from node_agent.state_dir import StateDirectory
from spiffe_core.runtime.monitor import Monitor
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.runtime.tracing import Tracing
from spiffe_core.wire.door_server import DoorServer, private_server
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.reflection import Reflection
from workload_api.sds import CARRIED as SDS_CARRIES
from workload_api.sds import SERVICE as SDS
from workload_api.sds import SecretDiscovery
from workload_api.service import SERVICE as WORKLOAD_API
from workload_api.service import WorkloadApi

if TYPE_CHECKING:  # loaded only where it is configured
    from node_agent.file_sets.own_files import OwnFiles

DRAIN_SECONDS = 8.0
FLUSH_SECONDS = 2.0
"""For the last bytes to pass the front door once gRPC has written them."""


@dataclass(slots=True)
class Agent:
    """A composed agent: `open` its socket, `start` its loops, `drain` it, `close` it, in this order."""

    settings: AgentSettings
    state: StateDirectory
    client: ServerClient
    membership: Membership
    synchronize: Synchronize
    renewals: RenewSvids
    workloads: WorkloadSvids
    follow: FollowServer | None
    jwt: JwtSvids | None
    door: FrontDoor
    api: WorkloadApi
    sds: SecretDiscovery | None
    admin: AdminSocket
    broker: BrokerEndpoint | None
    files: OwnFiles | None
    monitor: Monitor
    parts: Parts
    interceptors: Sequence[grpc.aio.ServerInterceptor]
    tracing: Tracing | None
    reflection: Reflection = field(init=False)
    server: DoorServer = field(init=False)

    def __post_init__(self) -> None:
        health = Health(lambda: self.healthy)
        services, served = [health.handler()], [HEALTH]
        if not self.settings.workload_api.disabled:
            services.append(self.api.handler())
            served.append(WORKLOAD_API)
        if self.sds is not None:
            services.append(self.sds.handler())
            served.append(SDS)
        self.reflection = Reflection(served, SDS_CARRIES)
        services += self.reflection.handlers()
        self.server = private_server(self.door, services, self.interceptors)

    @property
    def healthy(self) -> bool:
        """A member, synchronised at least once, and not going down."""
        return self.monitor.report().ready

    @property
    def serves_workloads(self) -> bool:
        """False if both things that workloads can ask for are disabled."""
        return self.sds is not None or not self.settings.workload_api.disabled

    async def open(self) -> None:
        """Begin to answer workloads: with Unavailable until the first sync is done.

        Raises:
            ConfigError: the socket cannot be used.
        """
        self.monitor.open()
        await self.client.start()
        await self.server.start()
        await self.admin.open()
        if self.broker is not None:
            await self.broker.open()
        if self.serves_workloads:
            self.door.listen_unix(self.settings.socket_path)

    def start(self, tasks: Supervisor) -> None:
        """Start the loops."""
        tasks.start(self.membership.run(), "membership")
        if self.follow is not None:
            tasks.start(self.follow.run(), "follow the server")
        tasks.start(self.synchronize.run(), "synchronize")
        tasks.start(self.renewals.run(), "renew SVIDs")
        if self.jwt is not None:
            tasks.start(self.jwt.run(), "refresh JWT-SVIDs")
        if self.files is not None:
            tasks.start(self.files.run(), "files")
        tasks.start(self.monitor.watch(), "health")

    async def drain(self) -> None:
        """Let nobody new in, tell every stream, let calls under way end (architecture A7)."""
        self.parts.draining = True
        self.door.stop_accepting()
        self.api.drain()
        self.reflection.drain()
        beside = [one.drain(DRAIN_SECONDS, FLUSH_SECONDS) for one in (self.admin, self.broker) if one is not None]
        await asyncio.gather(self.server.stop(DRAIN_SECONDS), *beside)
        await self.door.emptied(FLUSH_SECONDS)  # a client that does not read is cut off

    async def close(self) -> None:
        """Release sockets, connections and the state directory, whether or not calls were waited for by `drain`."""
        await self.server.stop(None)
        await self.door.close()
        await self.admin.close()
        if self.broker is not None:
            await self.broker.close()
        await self.client.close()
        self.monitor.close()
        if self.tracing is not None:
            self.tracing.close()
        self.state.close()
