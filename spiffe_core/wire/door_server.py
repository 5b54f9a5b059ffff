"""The gRPC servers behind a front door: private listeners, and a guard that knows who came through the door.

Why there are lanes. A server of grpcio's event loop edition takes calls on one by one: it asks for the next when the
loop has come round. While thousands of agents connect at once each round is long, and a call on another connection
waits for as many rounds as there are calls before it. Calls that must not wait behind those get a server of their own:
connections over TLS are dealt out to `FrontDoor.lanes`, everything else has the first listener to itself.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from spiffe_core.wire.channels import MAX_MESSAGE_BYTES, MAX_STREAMS_PER_CONNECTION, server_options
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.services import CALL_KINDS, HANDLER_FACTORIES
from spiffe_core.wire.wrap_once import WrapOnce

AGENT_LANES = 4
"""So many of the agents' calls may be taken on in one round."""


class DoorGuard(grpc.aio.ServerInterceptor):
    """Lets no call through, on any service, whose connection did not come through the door."""

    def __init__(self, door: FrontDoor) -> None:
        self._door = door

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler, of whichever kind, so that it first asks who calls."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind = (handler.request_streaming, handler.response_streaming)
        behaviour = getattr(handler, CALL_KINDS[kind])
        door = self._door

        async def one(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            door.begin(context)
            return await behaviour(request, context)

        async def many(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            door.begin(context)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return HANDLER_FACTORIES[kind](
            many if inspect.isasyncgenfunction(behaviour) else one,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class DoorServer:
    """One gRPC server for each private listener of a door, all with the same services; they start and stop as one."""

    def __init__(self, servers: Sequence[grpc.aio.Server]) -> None:
        self._servers = tuple(servers)

    async def start(self) -> None:
        """Begin to serve."""
        for server in self._servers:
            await server.start()

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, and give those in flight `grace` seconds."""
        await asyncio.gather(*(server.stop(grace) for server in self._servers))


def private_server(
    door: FrontDoor,
    handlers: Sequence[grpc.GenericRpcHandler],
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    *,
    max_connection_age: float | None = None,
    max_stream_age: float = 0.0,
    max_message: int = MAX_MESSAGE_BYTES,
    max_streams: int = MAX_STREAMS_PER_CONNECTION,
) -> DoorServer:
    """The gRPC servers bound behind `door`, not started. The first interceptor is the outermost, the guard innermost.

    They wrap each method once, see `wrap_once`.
    """
    wrapped = WrapOnce([*interceptors, DoorGuard(door)])
    options = server_options(
        max_connection_age=max_connection_age,
        max_stream_age=max_stream_age,
        max_message=max_message,
        max_streams=max_streams,
    )
    servers: list[grpc.aio.Server] = []
    for target in (door.private_target, *door.lanes):
        server = grpc.aio.server(interceptors=[wrapped], options=options)
        server.add_generic_rpc_handlers(tuple(handlers))
        server.add_insecure_port(target)
        servers.append(server)
    return DoorServer(servers)
