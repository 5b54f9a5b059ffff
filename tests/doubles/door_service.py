"""A tiny service behind a front door, without protobuf: `/door.Test/*` over plain bytes."""

import asyncio

import grpc

from spiffe_core.wire.door_server import private_server
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.peer import UnixPeer
from spiffe_core.wire.status import ErrorInterceptor


def describe(peer) -> bytes:
    """What the handler was told about its caller."""
    if isinstance(peer, UnixPeer):
        return f"unix {peer.pid} {peer.uid} {peer.gid}".encode()
    return f"tls {peer.spiffe_id or 'anonymous'}".encode()


class DoorService:
    """Who: says who calls. Stream: the same, then silence until cancelled. Echo: the request back. First: the first of many."""

    def __init__(self, door: FrontDoor) -> None:
        self.door = door
        self.streams = 0

    async def who(self, _request, context):
        return describe(self.door.caller_of(context))

    async def stream(self, _request, context):
        self.streams += 1
        try:
            yield describe(self.door.caller_of(context))
            await asyncio.Event().wait()
        finally:
            self.streams -= 1

    async def echo(self, request, _context):
        return request

    async def first(self, requests, _context):
        async for request in requests:
            yield request
            return

    def handler(self):
        return grpc.method_handlers_generic_handler(
            "door.Test",
            {
                "Who": grpc.unary_unary_rpc_method_handler(self.who),
                "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
                "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
                "First": grpc.stream_stream_rpc_method_handler(self.first),
            },
        )


async def serve(door: FrontDoor, *, max_connection_age=None):
    """Start the service behind `door`; returns (service, grpc server)."""
    service = DoorService(door)
    server = private_server(door, [service.handler()], [ErrorInterceptor()], max_connection_age=max_connection_age)
    await server.start()
    return service, server
