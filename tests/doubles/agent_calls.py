"""Calls of agents and what is refused to them."""

import grpc
import grpc.aio
import pytest

from spiffe_core.errors import AgentRefused
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.status import from_rpc_error


async def refused(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details()


async def refusal(awaitable):
    """The reason an agent acts on, out of the status details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    error = from_rpc_error(caught.value)
    assert isinstance(error, AgentRefused), caught.value
    return error.refusal


def sync(agent):
    return agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10)
