"""Interceptors wrap each method of a server once, however often it is called (architecture A5, A17)."""

import grpc
import grpc.aio
import pytest

from spiffe_core.wire.wrap_once import WrapOnce


class Layer(grpc.aio.ServerInterceptor):
    """Wraps single calls in its name, and counts how often it wraps."""

    def __init__(self, name):
        self.name = name
        self.wrapped = []

    async def intercept_service(self, continuation, handler_call_details):
        handler = await continuation(handler_call_details)
        self.wrapped.append(handler_call_details.method)
        if handler is None:
            return None

        async def one(request, context):
            return self.name + await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(one)


@pytest.fixture
async def served(tmp_path):
    async def echo(request, _context):
        return request

    outer, inner = Layer(b"outer "), Layer(b"inner ")
    server = grpc.aio.server(interceptors=[WrapOnce([outer, inner])])
    methods = {name: grpc.unary_unary_rpc_method_handler(echo) for name in ("One", "Two")}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    address = f"unix:{tmp_path}/echo.sock"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel, outer, inner
    await server.stop(None)


async def test_each_method_is_wrapped_once_by_every_layer_the_first_outermost(served):
    channel, outer, inner = served
    for _ in range(3):
        for name in ("One", "Two"):
            assert await channel.unary_unary(f"/test.Echo/{name}")(b"hello", timeout=20) == b"outer inner hello"
    assert outer.wrapped == inner.wrapped == ["/test.Echo/One", "/test.Echo/Two"]


async def test_names_that_are_no_methods_are_not_remembered(served):
    """S58: callers think of any number of names."""
    channel, outer, _ = served
    for number in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/test.Echo/Nothing{number}")(b"", timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/test.Echo/Nothing")(b"", timeout=20)
    assert outer.wrapped.count("/test.Echo/Nothing") == 3
