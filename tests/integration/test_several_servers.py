"""Several servers on one database: an agent may call any of them at any moment and never gets a wrong detail.

Each test runs on PostgreSQL and on MariaDB, both real.
"""

import asyncio
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest

from identity_server.domain.agents import AttestedAgent
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import AgentRefused, Refusal
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import x509svid_pb2 as types_pb2
from spiffe_core.wire.status import from_rpc_error
from tests.builders import TD
from tests.databases import SHARED_KINDS, url_of
from tests.doubles.held_follower import held_back, seen
from tests.doubles.live_server import attest, entry, live_server, sign, spiffe_id, wanted


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


@pytest.fixture
async def pair(url):
    async with servers_on(url, 2) as pair:
        yield pair


class servers_on:  # noqa: N801  # reads as a function
    """So many servers on one database, all started at the same moment, each knowing the roots of all."""

    def __init__(self, url, count):
        self.url, self.count = url, count
        self.stack = AsyncExitStack()

    async def __aenter__(self):
        contexts = [live_server(database={"url": self.url}) for _ in range(self.count)]
        servers = await asyncio.gather(*(self.stack.enter_async_context(one) for one in contexts))
        for one in servers:
            await seen(one.server.store, lambda state: len(roots(state)) == self.count)
        return servers

    async def __aexit__(self, *error):
        await self.stack.aclose()


def roots(state):
    return state.bundles.own.x509_roots if state.bundles is not None else ()


def sync(agent):
    return agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10)


async def renew(agent, key):
    request = agent_pb2.RenewAgentRequest(params={"csr": build_csr(key, spiffe_id=None)})
    return (await agent.agent.RenewAgent(request, timeout=10)).svid


async def refusal(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    error = from_rpc_error(caught.value)
    assert isinstance(error, AgentRefused), caught.value
    return error.refusal


async def test_three_servers_start_at_once_on_an_empty_database(url):
    """R30: one makes the schema, each signs with its own authority, every bundle holds all roots, none is lost."""
    async with servers_on(url, 3) as servers:
        active = {one.server.authorities.active.authority_id for one in servers}
        assert len(active) == 3
        for one in servers:
            assert {root.key_id for root in one.state.bundles.own.x509_authorities} == active
            assert one.server.serving
        first = await servers[0].join()
        (entry_id,) = await servers[1].entries(entry(parent=first.path))
        for one in servers:
            await seen(one.server.store, lambda state: entry_id in state.entries)
            there = await one.agent_with(first.own, first.key)
            assert [found.id for found in (await sync(there)).entries] == [entry_id]
            (signed,) = await sign(there, wanted(entry_id))
            assert signed.status.message == "OK"


async def test_attested_on_one_the_agent_may_call_another_that_does_not_know_yet(pair):
    """A8: memory does not know the agent; the database does."""
    one, other = pair
    async with held_back(other.server.store):
        agent = await one.join()
        assert agent.path not in other.state.agents
        assert (await sync(await other.agent_with(agent.own, agent.key))).entries == []
    await seen(other.server.store, lambda state: agent.path in state.agents)


async def test_renewed_on_one_the_new_certificate_works_on_another_that_does_not_know_yet(pair):
    """A8, R4: memory knows the old serial only."""
    one, other = pair
    agent = await one.join()
    await seen(other.server.store, lambda state: agent.path in state.agents)
    await sync(await other.agent_with(agent.own, agent.key))
    async with held_back(other.server.store):
        key = generate(KeyKind.EC_P256)
        svid = await renew(agent, key)
        renewed = await other.agent_with(svid, key)
        await sync(renewed)
        await sync(renewed)
    await sync(renewed)
    again = generate(KeyKind.EC_P256)
    await sync(await one.agent_with(await renew(renewed, again), again))


async def test_an_entry_made_on_one_is_never_not_found_on_another(pair):
    """A8: an agent that is told "not found" gives the identity up; what memory does not know yet is Unavailable."""
    one, other = pair
    agent = await one.join()
    await seen(other.server.store, lambda state: agent.path in state.agents)
    there = await other.agent_with(agent.own, agent.key)
    async with held_back(other.server.store):
        (entry_id,) = await one.entries(entry(parent=agent.path))
        (result,) = await sign(there, wanted(entry_id))
        assert grpc.StatusCode.UNAVAILABLE.value[0] == result.status.code, result.status
    await seen(other.server.store, lambda state: entry_id in state.entries)
    (result,) = await sign(there, wanted(entry_id))
    assert result.status.message == "OK"


async def test_a_ban_on_one_is_effective_on_the_other_at_once(pair):
    """Invariant 5: at most 5 s; here the wake-up of the database brings it."""
    one, other = pair
    agent = await one.join()
    await seen(other.server.store, lambda state: agent.path in state.agents)
    there = await other.agent_with(agent.own, agent.key)
    await sync(there)
    await one.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    await seen(other.server.store, lambda state: state.agents[agent.path].banned, seconds=2)
    assert await refusal(sync(there)) == Refusal.AGENT_BANNED


async def test_banned_evicted_and_attested_again_while_another_still_knows_the_ban(pair):
    """A8: the other's memory says banned, which is no longer true; the agent must not be told."""
    one, other = pair
    agent = await one.join()
    await one.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    await seen(other.server.store, lambda state: agent.path in state.agents and state.agents[agent.path].banned)
    async with held_back(other.server.store):
        await one.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
        there = await other.agent_with(await attested_again(one, agent), agent.key)
        assert other.state.agents[agent.path].banned
        for _ in range(3):
            await sync(there)
    await sync(there)


async def attested_again(live, agent):
    """As an attestor does whose agents keep their path: a new certificate and a new record."""
    issuer, store = live.server.authorities.issuer, live.server.store
    issued = issuer.issue("agent", SpiffeId(TD, agent.path), agent.key.public_key())
    record = AttestedAgent(issued.spiffe_id, "x509pop", issued.serial, issued.not_after, can_reattest=True)
    await store.execute(lambda uow: uow.agents.put(record))
    return types_pb2.X509SVID(cert_chain=issued.chain, id=spiffe_id(agent.path), expires_at=issued.not_after)


async def test_evicted_on_one_the_other_asks_the_database_and_says_so(pair):
    """The control: a refusal that is true does reach the agent."""
    one, other = pair
    agent = await one.join()
    await seen(other.server.store, lambda state: agent.path in state.agents)
    there = await other.agent_with(agent.own, agent.key)
    await one.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
    await seen(other.server.store, lambda state: agent.path not in state.agents, seconds=2)
    assert await refusal(sync(there)) == Refusal.AGENT_NOT_ATTESTED


async def test_one_token_used_100_times_at_once_on_two_servers_lets_one_in(pair):
    """S26: whichever server they ask."""
    one, other = pair
    token = await one.token()
    doors = [await server.dial() for server in (one, other)]

    async def attempt(number):
        try:
            await attest(doors[number % 2].agent, token, generate(KeyKind.EC_P256))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return None

    outcomes = await asyncio.gather(*map(attempt, range(100)))
    assert outcomes.count(None) == 1
    assert set(outcomes) == {None, grpc.StatusCode.INVALID_ARGUMENT}
