"""A real agent with a real server: joining, serving, renewing, restarts, bans, outages."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from deploy.demo.stack import free_port
from spiffe_core.errors import ConfigError, Conflict, Forbidden, Unavailable
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server, spiffe_id
from workload_api.client import Redacted


@pytest.fixture
async def live():
    async with live_server(svid={"default_x509_ttl": "1h"}) as server:
        yield server


@pytest.fixture
async def folder():
    async with agent_folder() as made:
        yield made


@asynccontextmanager
async def joined(live, folder, **settings):
    """An agent that has joined with a fresh token."""
    token = token_file(folder, await live.token())
    bundle = pem_bundle(live, folder)
    settings = {"trust_bundle_path": str(bundle), "join_token_file": str(token), **settings}
    async with live_agent(folder, live.server.address, **settings) as agent:
        await agent.until_joined()
        yield agent


def own(path="/web", **over):
    return lambda agent: entry(path=path, parent=agent.path, selectors=OWN, **over)


async def register(live, agent, *makers):
    ids = await live.entries(*(make(agent) for make in makers))
    agent.sync_now()
    return ids


async def test_from_a_token_to_an_svid(live, folder):
    """The main job: join, sync, fetch; the SVID verifies with the bundle that comes with it."""
    async with joined(live, folder) as agent:
        await register(live, agent, own())
        async for context in agent.client.watch_x509():
            if isinstance(context, Redacted):
                continue  # the entry had not arrived yet
            assert [str(one.spiffe_id) for one in context.svids] == ["spiffe://example.org/web"]
            break
        assert await agent.health() == "SERVING"


async def test_a_stream_follows_entries(live, folder):
    """N-A-28, N-A-29: added, removed, removed for good."""
    async with joined(live, folder) as agent:
        first, second = await register(live, agent, own(), own("/db"))
        await agent.until(lambda: len(agent.agent.workloads.all_held()) == 2)
        seen = []
        async for context in agent.client.watch_x509():
            names = None if isinstance(context, Redacted) else sorted(one.spiffe_id.path for one in context.svids)
            seen.append(names)
            match names:
                case ["/db", "/web"]:
                    await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[first]))
                case ["/db"]:
                    await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[second]))
                case None:
                    break
        assert seen == [["/db", "/web"], ["/db"], None]


async def test_who_matches_nothing_is_refused(live, folder):
    """N-A-09."""
    async with joined(live, folder) as agent:
        with pytest.raises(Forbidden, match="no identity issued"):
            await agent.client.fetch_x509()


async def test_before_it_has_joined_the_socket_answers_unavailable(live, folder):
    """N-A-24: not connection refused, not PermissionDenied."""
    bundle = pem_bundle(live, folder)
    async with live_agent(folder, live.server.address, trust_bundle_path=str(bundle)) as agent:
        with pytest.raises(Unavailable):
            await agent.client.fetch_x509()
        assert await agent.health() == "NOT_SERVING"


async def test_a_new_token_lets_a_waiting_agent_in_without_a_restart(live, folder):
    """R22."""
    bundle, token = pem_bundle(live, folder), token_file(folder, "never-made")
    settings = {"trust_bundle_path": str(bundle), "join_token_file": str(token)}
    async with live_agent(folder, live.server.address, **settings) as agent:
        await agent.until(lambda: agent.agent.membership.session.failures)
        token_file(folder, await live.token())
        agent.agent.membership._wake.set()
        await agent.until_joined()


async def test_a_restart_does_not_attest_again(live, folder):
    """R43: same identity, and no join: the token is used up."""
    async with joined(live, folder) as agent:
        path = agent.path
    serial = await _serial(live, path)
    bundle = pem_bundle(live, folder)
    async with live_agent(folder, live.server.address, trust_bundle_path=str(bundle)) as agent:
        await agent.until_joined()
        assert agent.path == path
    assert await _serial(live, path) == serial


async def test_a_restart_needs_no_bundle_file(live, folder):
    """The saved state is enough to recognise the server."""
    async with joined(live, folder):
        pass
    async with live_agent(folder, live.server.address) as agent:
        await agent.until_joined()


async def test_the_agents_svid_is_renewed_and_later_calls_use_the_new_one(live, folder):
    """RenewAgent: the pending serial becomes the current one at the first call made with it."""
    async with joined(live, folder) as agent:
        before = await _serial(live, agent.path)
        membership = agent.agent.membership
        membership.session = _due(membership)
        membership._wake.set()
        await agent.until(lambda: membership.session.generation == 2)
        agent.sync_now()
        await _changes(live, agent.path, before)
        assert await agent.health() == "SERVING"


async def test_a_ban_ends_streams_and_deletes_keys(live, folder):
    """A19, R44: PermissionDenied within one sync, nothing on disk, up and red."""
    async with joined(live, folder) as agent:
        await register(live, agent, own())
        await agent.until(lambda: len(agent.agent.workloads.all_held()) == 1)
        seen = []
        async for context in agent.client.watch_x509():
            seen.append(isinstance(context, Redacted))
            if seen == [False]:
                await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
                agent.sync_now()
            else:
                break
        assert seen == [False, True]
        await agent.until(lambda: not (folder / "state" / "agent-state.json").exists())
        assert await agent.health() == "NOT_SERVING"
        with pytest.raises(Forbidden):
            await agent.client.fetch_x509()


async def test_an_evicted_agent_serves_on_and_joins_anew(live, folder):
    """A19, R44."""
    async with joined(live, folder) as agent:
        await register(live, agent, own())
        await agent.until(lambda: len(agent.agent.workloads.all_held()) == 1)
        await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
        agent.sync_now()
        await agent.until(lambda: not agent.agent.membership.session.is_member)
        assert len((await agent.client.fetch_x509()).svids) == 1
        assert await agent.health() == "NOT_SERVING"
        token_file(folder, await live.token())
        agent.agent.membership._wake.set()
        await agent.until_joined()


async def test_a_lost_reply_burns_nothing(live, folder):
    """A18: the reply to AttestAgent is lost; the agent's next attempt, after a restart, presents the same key."""
    token, bundle = token_file(folder, await live.token()), pem_bundle(live, folder)
    settings = {"trust_bundle_path": str(bundle), "join_token_file": str(token)}
    async with live_agent(folder, live.server.address, **settings) as agent:
        client = agent.agent.client
        attest = client._attest

        async def lost(prover, csr):
            await attest(prover, csr)
            raise Unavailable("the connection broke")

        client._attest = lost
        agent.agent.membership._wake.set()
        await agent.until(lambda: agent.agent.membership.session.failures or agent.path)
        if agent.path:
            pytest.fail("the reply was not lost")
    async with live_agent(folder, live.server.address, **settings) as agent:
        await agent.until_joined()


async def test_insecure_bootstrap_joins_and_then_knows_the_server(live, folder):
    """After the first contact the agent holds the bundle and needs no insecurity any more."""
    token = token_file(folder, await live.token())
    settings = {"insecure_bootstrap": True, "join_token_file": str(token)}
    async with live_agent(folder, live.server.address, **settings) as agent:
        await agent.until_joined()
    async with live_agent(folder, live.server.address) as agent:
        await agent.until_joined()


async def test_a_server_of_another_authority_is_not_believed(live, folder):
    """The bundle given to the agent does not prove this server: no token is sent."""
    async with live_server() as stranger:
        token, bundle = token_file(folder, await live.token()), pem_bundle(live, folder)
        settings = {"trust_bundle_path": str(bundle), "join_token_file": str(token)}
        async with live_agent(folder, stranger.server.address, **settings) as agent:
            await agent.until(lambda: agent.agent.membership.session.failures)
            assert "not proven by the trust bundle" in agent.agent.membership.session.why


async def test_an_agent_with_nothing_to_trust_does_not_start(live, folder):
    with pytest.raises(ConfigError, match="trust_bundle_path"):
        async with live_agent(folder, live.server.address):
            pass


async def test_a_second_agent_on_the_same_directory_is_refused(live, folder):
    async with joined(live, folder):
        with pytest.raises(Conflict, match="in use by process"):
            async with live_agent(folder, live.server.address):
                pass


async def test_a_server_that_goes_and_comes_back_is_found_again(folder):
    """R20: cached SVIDs are served meanwhile; nobody restarts the agent."""
    async with agent_folder() as base:
        port = free_port()
        async with live_server(base, bind_port=port) as live:
            address = live.server.address
            token, bundle = token_file(folder, await live.token()), pem_bundle(live, folder)
            settings = {"trust_bundle_path": str(bundle), "join_token_file": str(token)}
            agent_context = live_agent(folder, address, **settings)
            agent = await agent_context.__aenter__()
            await agent.until_joined()
            await register(live, agent, own())
            await agent.until(lambda: len(agent.agent.workloads.all_held()) == 1)
        try:
            agent.sync_now()
            await agent.until(lambda: not agent.agent.synchronize.synced)
            assert len((await agent.client.fetch_x509()).svids) == 1
            assert await agent.health() == "SERVING"
            async with live_server(base, bind_port=port) as live:
                await live.entries(own("/second")(agent))
                await agent.until(lambda: len(agent.agent.workloads.all_held()) == 2)
        finally:
            await agent_context.__aexit__(None, None, None)


async def test_more_entries_than_one_page_arrive_whole_and_change_piecewise(live, folder):
    """spire_wire 5.3: above 500 entries the server sends revisions first."""
    async with joined(live, folder) as agent:
        messages = [entry(path=f"/w{n}", parent=agent.path, selectors=(("unix", f"uid:{n}"),)) for n in range(1203)]
        ids = []
        for start in range(0, len(messages), 400):
            ids += await live.entries(*messages[start : start + 400])
        agent.sync_now()
        await agent.until(lambda: len(agent.agent.workloads.entries) == 1203)
        await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=ids[:3]))
        update = entry(path="/changed", parent=agent.path, selectors=(("unix", "uid:77"),), id=ids[77])
        response = await live.entry.BatchUpdateEntry(entry_pb2.BatchUpdateEntryRequest(entries=[update]))
        assert response.results[0].status.message == "OK"
        agent.sync_now()
        await agent.until(lambda: len(agent.agent.workloads.entries) == 1200)
        await agent.until(lambda: agent.agent.workloads.entries[ids[77]].spiffe_id.path == "/changed")


async def test_draining_ends_idle_streams_at_once_with_unavailable(live, folder):
    """R6: with only idle streams the end takes no second."""
    async with joined(live, folder) as agent:
        await register(live, agent, own())
        await agent.until(lambda: len(agent.agent.workloads.all_held()) == 1)
        streams = [agent.x509_stream() for _ in range(100)]
        for stream in streams:
            await stream.read()
        begin = asyncio.get_running_loop().time()
        await agent.agent.drain()
        took = asyncio.get_running_loop().time() - begin
        ends = [await stream.details() for stream in streams]
        assert ends == ["restarting"] * 100
        assert took < 4.0


def _due(membership):
    from dataclasses import replace

    return replace(membership.session, renew_at=membership._steady.now())


async def _serial(live, path):
    return (await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(path)))).x509svid_serial_number


async def _changes(live, path, before):
    async with asyncio.timeout(10):
        while await _serial(live, path) == before:
            await asyncio.sleep(0.02)


async def test_the_workload_api_and_sds_can_be_switched_off(live, folder):
    """spire_features section 5.1: one of them leaves the other, both leave no socket for workloads."""
    async with joined(live, folder, workload_api={"disabled": True}) as agent:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await agent.x509_stream().read()
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await agent.health() in {"SERVING", "NOT_SERVING"}
    async with joined(live, folder, workload_api={"disabled": True}, sds={"disabled": True}) as agent:
        await agent.until(lambda: agent.agent.synchronize.synced)
        assert not agent.agent.settings.socket_path.exists()
