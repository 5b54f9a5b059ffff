"""gRPC services and stubs, built from descriptors instead of generated code.

A service is any object with a method per RPC it offers, named as in the .proto file:

    async def Unary(self, request, context) -> response
    async def Streaming(self, request, context) -> AsyncIterator[response]     (an async generator)
    async def Dialogue(self, requests, context) -> AsyncIterator[response]     (requests is an async iterator)

A response is a message, or the finished bytes of one: answers that many callers share are serialized once.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from spiffe_core.errors import InvalidRequest

HANDLER_FACTORIES: Final[dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By (the client streams, the server streams)."""

CALL_KINDS: Final[dict[tuple[bool, bool], str]] = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
"""What gRPC calls each kind, in channels and in handlers."""


def handlers(service: ServiceDescriptor, implementation: object) -> grpc.GenericRpcHandler:
    """Serve `implementation` as `service`. A method that it does not have answers UNIMPLEMENTED."""
    table = {method.name: _handler(method, getattr(implementation, method.name, None)) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, table)


def full_method(method: MethodDescriptor) -> str:
    """The name of a method in an HTTP/2 request: `/package.Service/Method`."""
    return f"/{method.containing_service.full_name}/{method.name}"


def serialize(response: Message | bytes) -> bytes:
    """A message as bytes; finished bytes as they are."""
    return response if isinstance(response, bytes) else response.SerializeToString()


def _handler(method: MethodDescriptor, behaviour: Callable[..., Any] | None) -> grpc.RpcMethodHandler[Any, Any]:
    """Requests are read inside the call, not by grpcio, which would log a traceback for each that cannot be read."""
    factory = HANDLER_FACTORIES[method.client_streaming, method.server_streaming]
    return factory(
        _reading(method, behaviour or _absent(method)),
        request_deserializer=None,
        response_serializer=serialize,
    )


def _reading(method: MethodDescriptor, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    parse = GetMessageClass(method.input_type).FromString

    def read(data: bytes) -> Message:
        try:
            return parse(data)
        except DecodeError as error:
            raise InvalidRequest(f"the request is not a {method.input_type.full_name} message") from error

    async def read_all(requests: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for data in requests:
            yield read(data)

    def request_of(sent: Any) -> Any:
        return read_all(sent) if method.client_streaming else read(sent)

    async def one(sent: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        return await behaviour(request_of(sent), context)

    async def many(sent: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        async with aclosing(behaviour(request_of(sent), context)) as responses:
            async for response in responses:
                yield response

    return one if not method.server_streaming or inspect.iscoroutinefunction(behaviour) else many


def _absent(method: MethodDescriptor) -> Callable[..., Any]:
    text = f"method {full_method(method)} is not offered here"

    async def refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)

    async def refuse_stream(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
        yield Message()  # pragma: no cover - never reached; it makes this an async generator

    return refuse_stream if method.server_streaming else refuse


class Stub:
    """A client of one service: one callable attribute per method, over an asynchronous or a blocking channel.

    `Stub(channel, entry_pb2.DESCRIPTOR.services_by_name["Entry"]).GetEntry(request, timeout=5)`
    """

    def __init__(self, channel: grpc.aio.Channel | grpc.Channel, service: ServiceDescriptor) -> None:
        self._service = service.full_name
        for method in service.methods:
            kind = CALL_KINDS[method.client_streaming, method.server_streaming]
            call = getattr(channel, kind)(
                full_method(method),
                request_serializer=serialize,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:
        """Only reached for a name that is no method of the service."""
        raise AttributeError(f"service {self._service} has no method {name}")

    def __repr__(self) -> str:
        return f"<Stub {self._service}>"
