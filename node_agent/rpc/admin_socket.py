"""The agent's admin socket: services for operators and for delegates, apart from what workloads can reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio

from spiffe_core.wire.door_server import private_server
from spiffe_core.wire.front_door import FrontDoor
from workload_api.streams import Streams

SOCKET_MODE = 0o600
DIRECTORY_MODE = 0o755
STREAMS_PER_CONNECTION = 1000
"""A delegate follows each of its workloads by a stream; how many one user may have is for `limits.streams_per_uid`."""


class AdminSocket:
    """`open` it, `drain` it, `close` it, in this order. Only the agent's own user and root can connect."""

    def __init__(
        self,
        path: Path,
        door: FrontDoor,
        streams: Streams,
        services: Sequence[grpc.GenericRpcHandler],
        interceptors: Sequence[grpc.aio.ServerInterceptor],
    ) -> None:
        self._path, self._door, self._streams = path, door, streams
        self._server = private_server(door, list(services), interceptors, max_streams=STREAMS_PER_CONNECTION)

    async def open(self) -> None:
        """Begin to answer.

        Raises:
            ConfigError: the socket cannot be used.
        """
        await self._server.start()
        self._door.listen_unix(self._path, mode=SOCKET_MODE, dir_mode=DIRECTORY_MODE)

    async def drain(self, seconds: float, flush_seconds: float) -> None:
        """Let nobody new in, tell every stream, let calls under way end."""
        self._door.stop_accepting()
        self._streams.drain()
        await self._server.stop(seconds)
        await self._door.emptied(flush_seconds)

    async def close(self) -> None:
        """Release the socket; calls that `drain` has not waited for end here."""
        await self._server.stop(None)
        await self._door.close()
