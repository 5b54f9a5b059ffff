"""Servers whose memory is behind the database: no agent is told a no that is not true, and each no costs one read.

Architecture A8 on real PostgreSQL and MariaDB, with join tokens and x509pop, two and three servers.
"""

import asyncio
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest

from attestors.node.x509pop import ProverSettings, X509PopProver
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import AgentRefused, Refusal
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.status import from_rpc_error
from tests.databases import SHARED_KINDS, url_of
from tests.doubles.held_follower import held_back, seen
from tests.doubles.live_server import entry, live_server, params, sign, spiffe_id, wanted
from tests.doubles.node_pki import NodePki

PKI = NodePki()


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


@pytest.fixture
async def servers(url, tmp_path):
    """Three servers that believe the nodes' PKI, each with the roots of all."""
    pop = {"x509pop": {"ca_bundle_path": str(PKI.bundle(tmp_path))}}
    async with AsyncExitStack() as stack:
        contexts = [live_server(database={"url": url}, attestors=pop) for _ in range(3)]
        found = await asyncio.gather(*(stack.enter_async_context(one) for one in contexts))
        for one in found:
            await seen(one.server.store, lambda state: len(state.bundles.own.x509_roots) == len(found))
        yield found


class Reads:
    """Counts what is read from the database for a server's callers."""

    def __init__(self, live, monkeypatch):
        self.count, self._read = 0, live.server.store.read
        monkeypatch.setattr(live.server.store, "read", self)

    async def __call__(self, query):
        self.count += 1
        return await self._read(query)

    def since(self):
        found, self.count = self.count, 0
        return found


def sync(agent):
    return agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10)


async def refusal(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    error = from_rpc_error(caught.value)
    assert isinstance(error, AgentRefused), caught.value
    return error.refusal


async def renewed(agent, key):
    request = agent_pb2.RenewAgentRequest(params={"csr": build_csr(key, spiffe_id=None)})
    return (await agent.agent.RenewAgent(request, timeout=20)).svid


async def pop(live, node, key, folder):
    """Attest as an agent does that holds a node's certificate; connected with the new SVID."""
    evidence = X509PopProver(ProverSettings(**node.files(folder))).prove()
    call = (await live.dial()).agent.AttestAgent(timeout=20)
    await call.write(params(next(evidence), key, "x509pop"))
    while not (response := await call.read()).HasField("result"):
        await call.write(agent_pb2.AttestAgentRequest(challenge_response=evidence.send(response.challenge)))
    await call.done_writing()
    return await live.agent_with(response.result.svid, key)


async def test_the_hot_path_reads_nothing(servers, monkeypatch):
    """A8: sync and signing for a known agent are answered from memory alone."""
    one, two, _ = servers
    agent = await one.join()
    (entry_id,) = await one.entries(entry("/web", agent.path))
    await seen(two.server.store, lambda state: entry_id in state.entries)
    there = await two.agent_with(agent.own, agent.key)
    reads = Reads(two, monkeypatch)
    for _ in range(10):
        assert [found.id for found in (await sync(there)).entries] == [entry_id]
        (signed,) = await sign(there, wanted(entry_id))
        assert signed.status.code == 0
    assert reads.since() == 0


async def test_each_no_of_a_memory_that_is_behind_costs_one_read(servers, monkeypatch):
    """A8: many who ask together share one read; once memory has caught up there is none."""
    one, two, _ = servers
    async with held_back(two.server.store):
        agent = await one.join()
        there = await two.agent_with(agent.own, agent.key)
        reads = Reads(two, monkeypatch)
        for _ in range(3):
            await sync(there)
        assert reads.since() == 3
        await asyncio.gather(*(sync(there) for _ in range(30)))
        assert reads.since() < 15
        gone = await one.join()
        there_gone = await two.agent_with(gone.own, gone.key)
        await one.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(gone.path)))
        assert gone.path not in two.state.agents
        for _ in range(5):
            assert await refusal(sync(there_gone)) is Refusal.AGENT_NOT_ATTESTED
        assert reads.since() == 1, "a true no is remembered for a second"
    await seen(two.server.store, lambda state: agent.path in state.agents)
    for _ in range(3):
        await sync(there)
    assert reads.since() == 0


async def test_renewed_again_and_again_on_any_server_every_other_accepts_the_newest(servers, monkeypatch):
    """A8, R4: A renews, B and C are behind; then B renews what it never saw, and so on: never a no."""
    first = await servers[0].join()
    for one in servers:
        await seen(one.server.store, lambda state: first.path in state.agents)
    svid, key = first.own, first.key
    for round_ in range(4):
        home = servers[round_ % 3]
        others = [one for one in servers if one is not home]
        async with AsyncExitStack() as stack:
            for one in others:
                await stack.enter_async_context(held_back(one.server.store))
            fresh = generate(KeyKind.EC_P256)
            svid = await renewed(await home.agent_with(svid, key), fresh)
            key = fresh
            counts = [Reads(one, monkeypatch) for one in others]
            for one, reads in zip(others, counts, strict=True):
                there = await one.agent_with(svid, key)
                await sync(there)
                assert reads.since() == 1, "its memory does not know the serial"
                await sync(there)
        for one in servers:
            await one.server.admissions.settled()
            await sync(await one.agent_with(svid, key))
    assert await refusal(sync(first)) is Refusal.AGENT_NOT_ACTIVE, "the control: the first certificate is long replaced"


async def test_a_node_that_was_banned_evicted_and_came_back_is_not_told_of_its_ban(servers, tmp_path, monkeypatch):
    """A8 with x509pop, whose agents keep their path: B and C know the ban, A knows that it is over."""
    one, two, three = servers
    node = PKI.node("rack7")
    agent = await pop(one, node, generate(KeyKind.EC_P256), tmp_path)
    await one.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    for live in (two, three):
        await seen(
            live.server.store, lambda state: agent.path in state.agents and state.agents[agent.path].banned, seconds=5
        )
    assert await refusal(sync(await two.agent_with(agent.own, agent.key))) is Refusal.AGENT_BANNED
    async with held_back(two.server.store), held_back(three.server.store):
        await one.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
        again = await pop(one, node, generate(KeyKind.EC_P256), tmp_path)
        assert again.path == agent.path
        for live in (two, three):
            assert live.state.agents[agent.path].banned
            there = await live.agent_with(again.own, again.key)
            reads = Reads(live, monkeypatch)
            for calls in range(1, 4):
                await sync(there)
                assert reads.count == calls
    for live in servers:
        await seen(live.server.store, lambda state: not state.agents[agent.path].banned)
        await sync(await live.agent_with(again.own, again.key))


async def test_a_node_attests_on_a_server_that_still_knows_its_ban(servers, tmp_path):
    """A8: also the attestation itself goes by the database, not by what memory last saw."""
    one, two, _ = servers
    node = PKI.node("rack8")
    agent = await pop(one, node, generate(KeyKind.EC_P256), tmp_path)
    await one.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    await seen(two.server.store, lambda state: agent.path in state.agents and state.agents[agent.path].banned)
    async with held_back(two.server.store):
        await one.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
        attempt = asyncio.ensure_future(pop(two, node, generate(KeyKind.EC_P256), tmp_path))
        # the answer waits until memory shows the change, which is held back here
        await seen(one.server.store, lambda state: agent.path in state.agents)
    again = await attempt
    await sync(again)
    await sync(await one.agent_with(again.own, again.key))
