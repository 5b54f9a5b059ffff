"""The SPIFFE Broker Endpoint: mutual TLS with SVIDs on a Unix socket, on TCP, or on both (SPIFFE Broker Endpoint).

The agent presents its own SVID. Who has no SVID of a trust domain known here does not get through the handshake. Who
has one and is no broker is answered PermissionDenied (section 6), but holds little: a few connections in all, each for
a few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from node_agent.domain.brokers import Brokers
from node_agent.rpc.broker_api import SERVICE as BROKER_API
from node_agent.rpc.broker_api import BrokerApi
from node_agent.services.referenced import ReferencedWorkloads
from spiffe_core.errors import Exhausted
from spiffe_core.wire.door_server import private_server
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.peer import TlsPeer
from spiffe_core.wire.reflection import Reflection
from spiffe_core.wire.tls import ServerTls

SOCKET_MODE = 0o770
CONNECTIONS = 256
MOST_STRANGERS = 16
STRANGER_SECONDS = 5.0
STREAMS_PER_CONNECTION = 4096
"""A broker has a stream or two for each workload of its node, all on one connection (SPIFFE Broker API section 4.3)."""
GRACE_SECONDS = 0.2
"""Between a refusal and the end of its connection, so that the refusal arrives."""


@dataclass(frozen=True, slots=True)
class BrokerAddresses:
    """Where the endpoint listens."""

    socket_path: Path | None = None
    tcp: tuple[str, int] | None = None


class Strangers:
    """Those who prove an identity that is no broker's."""

    def __init__(self, brokers: Brokers, door: FrontDoor) -> None:
        self._brokers, self._door = brokers, door
        self._inside = 0

    def admit(self, peer: TlsPeer) -> None:
        """Let a broker in, and a stranger for a moment if there are not too many.

        Raises:
            Exhausted: there are too many.
        """
        if peer.spiffe_id in self._brokers:
            return
        if self._inside >= MOST_STRANGERS:
            raise Exhausted("too many connections of those who are no brokers", spiffe_id=str(peer.spiffe_id))
        self._inside += 1
        asyncio.get_running_loop().call_later(STRANGER_SECONDS, self._out, peer)

    def _out(self, peer: TlsPeer) -> None:
        self._inside -= 1
        self._door.close_where(lambda other: other is peer)


class BrokerReflection(Reflection):
    """Server reflection for brokers (SPIFFE Broker Endpoint sections 3 and 7), over the Unix socket as SPIRE has it."""

    def __init__(self, api: BrokerApi) -> None:
        super().__init__([BROKER_API])
        self._api = api

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], context: Any) -> AsyncGenerator[Any, None]:
        """An answer to each question, in order."""
        self._api.require_local_broker(context)
        async with aclosing(super().ServerReflectionInfo(requests, context)) as answers:
            async for answer in answers:
                yield answer


class BrokerEndpoint:
    """`open` it, `drain` it, `close` it, in this order."""

    def __init__(
        self,
        addresses: BrokerAddresses,
        tls: ServerTls,
        door: FrontDoor,
        references: ReferencedWorkloads,
        api: BrokerApi,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
    ) -> None:
        self._addresses, self._tls, self._door, self._references = addresses, tls, door, references
        self._reflection = BrokerReflection(api)
        services = [api.handler(), *self._reflection.handlers()]
        self._server = private_server(door, services, interceptors, max_streams=STREAMS_PER_CONNECTION)
        self.tcp: tuple[str, int] | None = None
        """Where it listens, once it is open."""

    async def open(self) -> None:
        """Begin to answer.

        Raises:
            ConfigError: an address cannot be used.
        """
        await self._server.start()
        if self._addresses.socket_path is not None:
            self._door.listen_unix_tls(self._addresses.socket_path, self._tls, mode=SOCKET_MODE)
        if self._addresses.tcp is not None:
            self.tcp = self._door.listen_tcp(*self._addresses.tcp, self._tls)

    async def drain(self, seconds: float, flush_seconds: float) -> None:
        """Let nobody new in, tell every stream, let calls under way end."""
        self._door.stop_accepting()
        self._references.drain()
        self._reflection.drain()
        await self._server.stop(seconds)
        await self._door.emptied(flush_seconds)

    async def close(self) -> None:
        """Release the addresses; calls that `drain` has not waited for end here."""
        await self._server.stop(None)
        await self._door.close()
