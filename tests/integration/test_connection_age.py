"""Connections are asked to come back after a while; a push stream outlives that by far (A9)."""

import asyncio

import grpc
import grpc.aio
import pytest

from identity_server import bootstrap
from identity_server.rpc.services import PROPAGATION
from spiffe_core.wire import channels
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.services import Stub
from tests.doubles.live_server import entry, live_server, spiffe_id

AGES = {"connection_age_seconds": 1.0, "push_stream_age_seconds": 3.0}


@pytest.fixture
def hasty(monkeypatch):
    """Calls have half a second to end on a connection that is too old."""
    for module in (channels, bootstrap):
        monkeypatch.setattr(module, "LAST_CALLS_SECONDS", 0.5)


async def opened(agent):
    """A push stream that has said where the server is."""
    call = Stub(agent.dialer.channel(), PROPAGATION).Follow()
    await call.write(pb.FollowRequest(hello=pb.Hello()))
    await call.read()
    return call


async def end_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return asyncio.get_running_loop().time()


def sync(agent):
    return agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10)


def connections_of(live):
    """Of agents, by certificate."""
    return [link for link in live.server.door._links.values() if getattr(link.peer, "serial", "")]


async def test_calls_move_to_a_new_connection_while_the_push_stream_stays_until_its_authority_goes(hasty):
    """A9, R36, S2: 3 min for SPIRE's services, here a second; other idle streams end then, and a ban ends the push stream."""
    async with live_server(limits={**AGES, "push_stream_age_seconds": 600.0}) as live:
        agent = await live.join()
        stream = await opened(agent)
        assert len(connections_of(live)) == 1
        assert await end_of(agent.entry.SyncAuthorizedEntries())
        await sync(agent)
        assert len(connections_of(live)) == 2
        (entry_id,) = await live.entries(entry(parent=agent.path))
        assert [one.id for one in (await stream.read()).entries] == [entry_id], "the stream is still in use"
        await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
        await end_of(stream)


async def test_a_push_stream_ends_at_its_own_age_and_can_be_opened_again(hasty):
    """A9: 30 min, here 3 s; a connection without it would have ended after 1.5 s."""
    async with live_server(limits=AGES) as live:
        agent = await live.join()
        begun = asyncio.get_running_loop().time()
        assert await end_of(await opened(agent)) - begun > 2
        (await opened(agent)).cancel()
