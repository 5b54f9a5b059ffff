"""Calls that carry their position, over real servers on one database, one of them held back (A8).

What an agent was told by one server is never taken back by another one that does not know it yet.
"""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import grpc.aio
import pytest

from identity_server.rpc.services import PROPAGATION
from identity_server.services import abreast
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.positions import NONE, POSITION, position_in
from spiffe_core.wire.services import Stub
from tests.databases import SHARED_KINDS, url_of
from tests.doubles.held_follower import held_back, seen
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server, spiffe_id


@asynccontextmanager
async def servers_on(url):
    async with AsyncExitStack() as stack:
        contexts = [live_server(database={"url": url}) for _ in range(2)]
        pair = await asyncio.gather(*(stack.enter_async_context(one) for one in contexts))
        for one in pair:
            await seen(one.server.store, lambda state: len(state.bundles.own.x509_roots) == 2)
        yield pair


@pytest.fixture
async def pair(tmp_path):
    async with servers_on(url_of("postgresql", tmp_path)) as found:
        yield found


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(abreast, "WAIT_SECONDS", 0.2)


def sync(agent, position=None):
    metadata = None if position is None else ((POSITION, str(position)),)
    return agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10, metadata=metadata)


async def ids(call):
    return [found.id for found in (await call).entries]


async def unavailable(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, caught.value
    assert "grpc-status-details-bin" not in dict(caught.value.trailing_metadata()), "no detail that an agent acts upon"


async def told(call):
    await call
    return position_in(await call.trailing_metadata())


@pytest.mark.parametrize("kind", SHARED_KINDS)
async def test_an_entry_known_elsewhere_is_waited_for_and_never_missing(kind, tmp_path, impatient, monkeypatch):
    """A8: behind for good: Unavailable. Behind for a moment: the answer with the entry. Nothing carried: as ever."""
    async with servers_on(url_of(kind, tmp_path)) as (one, other):
        agent = await one.join()
        await seen(other.server.store, lambda state: agent.path in state.agents)
        there = await other.agent_with(agent.own, agent.key)
        async with held_back(other.server.store):
            (entry_id,) = await one.entries(entry(parent=agent.path))
            position = one.state.position
            await unavailable(sync(there, position))
            assert await ids(sync(there)) == [], "a stock agent is answered as it always was"
            monkeypatch.setattr(abreast, "WAIT_SECONDS", 20.0)
            waiting = asyncio.ensure_future(ids(sync(there, position)))
            await asyncio.wait({waiting}, timeout=0.3)
            assert not waiting.done()
        assert await waiting == [entry_id]


async def test_a_renewal_on_one_server_is_part_of_what_the_next_call_carries(pair, impatient):
    """R4: told by the trailers of the renewal; the other server, behind, gives no answer of before."""
    one, other = pair
    agent = await one.join()
    await seen(other.server.store, lambda state: agent.path in state.agents)
    async with held_back(other.server.store):
        key = generate(KeyKind.EC_P256)
        request = agent_pb2.RenewAgentRequest(params={"csr": build_csr(key, spiffe_id=None)})
        call = agent.agent.RenewAgent(request, timeout=10, metadata=((POSITION, NONE),))
        position = await told(call)
        renewed = await other.agent_with((await call).svid, key)
        await unavailable(sync(renewed, position))
        await sync(renewed)
    await sync(renewed, position)


async def test_a_lie_costs_the_liar_nothing_but_the_guarantee(pair):
    """An invented position, a lost history, and what is no position at all: answered at once, and told the truth."""
    one, _ = pair
    agent = await one.join()
    here = one.state.position
    lies = [f"{here.epoch}.{10**18}.1", f"{here.epoch + 1}.1.1", "1.1.1", "", "x" * 200, "-1.-1.-1", NONE]
    for lie in lies:
        answer = await asyncio.wait_for(told(sync(agent, lie)), 10)
        assert answer == (str(one.state.position) if len(lie) <= 64 else None), lie
    assert await told(sync(agent)) is None, "who sends nothing is sent nothing"
    assert one.server.store.state.value.position == here


async def test_a_stream_on_a_server_that_is_behind_does_not_begin(pair, impatient):
    """A9: a hello that finds less than its agent was told would take entries away from it."""
    one, other = pair
    agent = await one.join()
    await seen(other.server.store, lambda state: agent.path in state.agents)
    there = Stub((await other.agent_with(agent.own, agent.key)).dialer.channel(), PROPAGATION)
    async with held_back(other.server.store):
        await one.entries(entry(parent=agent.path))
        call = there.Follow(timeout=10, metadata=((POSITION, str(one.state.position)),))
        await call.write(pb.FollowRequest(hello=pb.Hello()))
        await unavailable(call.read())


async def test_an_agent_whose_server_dies_keeps_everything_while_the_other_is_behind(pair, impatient):
    """A8, A9, R34: the other server does not know the agent's entry yet; no SVID goes, none is made anew."""
    one, other = pair
    async with agent_folder() as folder:
        settings = {
            "trust_bundle_path": str(pem_bundle(one, folder)),
            "join_token_file": str(token_file(folder, await one.token())),
            "server_address": [f"127.0.0.1:{live.server.address[1]}" for live in pair],
        }
        async with live_agent(folder, one.server.address, **settings) as agent:
            await agent.until_joined()
            await agent.until(lambda: agent.agent.follow.up)
            port = agent.agent.client.calls.dialer.servers.current.port
            home, away = (one, other) if port == one.server.address[1] else (other, one)
            held = agent.agent.workloads
            async with held_back(away.server.store):
                await home.entries(entry("/web", parent=agent.path, selectors=OWN))
                await agent.until(held.all_held)
                ((entry_id, svid),) = held.all_held()
                counted = away.server.abreast
                home.server.door.stop_accepting()
                home.server.door.close_where(lambda _: True)
                await agent.until(lambda: counted.behind > 0)
                assert held.all_held() == [(entry_id, svid)]
                assert entry_id not in away.state.entries
            await agent.until(lambda: agent.agent.follow.up)
            assert agent.agent.client.calls.dialer.servers.current.port == away.server.address[1]
            assert held.all_held() == [(entry_id, svid)]
            await away.entries(entry("/more", parent=agent.path, selectors=OWN))
            await agent.until(lambda: len(held.all_held()) == 2)
            await away.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
            await agent.until(lambda: held.banned)
