"""A9: `--wait` and `show` count the agents of all servers of a database, on PostgreSQL and on MariaDB, both real."""

import asyncio
import json
import re
from contextlib import AsyncExitStack

import pytest

from identity_server.cli import main
from identity_server.domain.agent_progress import AgentProgress, ProgressRecord, digest_of, documents
from identity_server.rpc.services import PROPAGATION
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.services import Stub
from tests.databases import SHARED_KINDS, url_of
from tests.doubles.canned_daemon import leave_code
from tests.doubles.held_follower import seen
from tests.doubles.live_server import entry, live_server, spiffe_id
from tests.doubles.server_pair import ended, following, sharing_servers

TD = "spiffe://example.org"
SILENT = "identity_server.services.shared_progress.SILENT_SECONDS"


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


@pytest.fixture
async def pair(url):
    async with sharing_servers(url) as servers:
        yield servers


async def command(live, *words):
    return await asyncio.to_thread(leave_code, main, *words, "-socketPath", str(live.server.settings.socket_path))


def described(parent, path="/web"):
    return ("-parentID", f"{TD}{parent}", "-spiffeID", f"{TD}{path}", "-selector", "unix:uid:1000")


async def standings(live, **request):
    """Every answer of AwaitAgents."""
    call = Stub(live.channel, PROPAGATION).AwaitAgents(pb.AwaitAgentsRequest(**request), timeout=60)
    return [one async for one in call]


async def test_agents_of_all_servers_count(pair, capsys):
    """Create, update, delete, bundle, ban and evict, each told to one server, return when the other's agents have it."""
    one, other = pair
    async with following(one), following(other) as there:
        assert await command(one, "entry", "create", *described(there.path), "-wait") == 0
        assert re.search(r"In force at 2 agents, on 2 servers, after \d+ ms\.", capsys.readouterr().err)
        (entry_id,) = there.entries
        changed = (*described(there.path), "-hint", "new")
        assert await command(one, "entry", "update", "-entryID", entry_id, *changed, "-wait") == 0
        assert there.entries[entry_id].hint == "new"
        assert await command(one, "entry", "delete", "-entryID", entry_id, "-wait") == 0
        assert not there.entries
        bundle = await one.bundle.GetBundle({})
        assert bundle.x509_authorities
        assert await command(one, "agent", "ban", "-spiffeID", f"{TD}{there.path}", "-wait") == 0
        assert "In force at 1 agent, on 2 servers" in capsys.readouterr().err
        await there.until(lambda it: it.ended)
        assert await command(one, "agent", "evict", "-spiffeID", f"{TD}{there.path}", "-wait") == 0


async def test_an_agent_of_another_server_that_has_not_got_it_is_named(pair, capsys):
    one, other = pair
    async with following(one), following(other) as there:
        there.deaf = True
        words = described(there.path)
        assert await command(one, "entry", "create", *words, "-wait", "-waitTimeout", "1500ms") == 1
        said = capsys.readouterr()
        assert "Entry ID" in said.out, "the change stands, and was told"
        assert "1 agent has not got it yet" in said.err
        assert there.path in said.err
        waiting = asyncio.ensure_future(standings(one, timeout_ms=30_000))
        await there.acknowledge()
        assert (await waiting)[-1].reached == 2, "as soon as it has acknowledged"


async def test_an_agent_that_moves_to_another_server_counts_once_where_it_is(pair):
    """A9: the one that it left knows it no more, whatever it acknowledged there."""
    one, other = pair
    agent = await one.join()
    async with following(one, agent) as here:
        here.deaf = True
        await one.entries(entry(parent=agent.path))
        await here.until(lambda it: it.entries)
        await seen(other.server.store, lambda state: agent.path in state.agents and state.entries)
        async with following(other, await other.agent_with(agent.own, agent.key)):
            (*_, last) = await standings(one, timeout_ms=20_000)
            assert (last.connected, last.reached, last.servers) == (1, 1, 2)


async def test_an_agent_that_polls_another_server_has_it_after_its_next_sync_with_any(pair, capsys):
    """A9: SPIRE's agents spread their calls over the servers."""
    one, other = pair
    agent = await one.join()
    there = await other.agent_with(agent.own, agent.key)
    sync = entry_pb2.GetAuthorizedEntriesRequest()
    await there.entry.GetAuthorizedEntries(sync, timeout=10)
    waiting = asyncio.ensure_future(command(one, "entry", "create", *described(agent.path), "-wait"))
    await seen(other.server.store, lambda state: state.entries)
    await asyncio.sleep(0.3)
    assert not waiting.done(), "that sync began before the change"
    await agent.entry.GetAuthorizedEntries(sync, timeout=10)
    assert await waiting == 0
    assert "1 agent, 1 of which poll, on 2 servers" in capsys.readouterr().err


async def test_a_server_that_died_holds_nobody_up_and_its_agents_are_unknown(pair, capsys, monkeypatch):
    monkeypatch.setattr(SILENT, 1.0)
    one, other = pair
    async with following(one), following(other) as there:
        assert await command(one, "entry", "create", *described(there.path), "-wait") == 0
        await ended(other.sharing)
        assert await command(one, "entry", "create", *described(there.path, "/db"), "-wait") == 0
        said = capsys.readouterr().err
        assert "In force at 1 agent, after" in said, "the server that does not answer does not count"
        assert "1 agent of a server that does not answer, unknown since 2" in said
        assert there.path in said
        assert await command(one, "agent", "show", "-spiffeID", f"{TD}{there.path}") == 0
        assert re.search(rf"In force +: not known since 2.*server {other.server.server_id}", capsys.readouterr().out)
        async with following(one, await one.agent_with(there.agent.own, there.agent.key)):
            (*_, last) = await standings(one, timeout_ms=20_000)
            assert (last.connected, last.unknown) == (2, 0), "found again at a server that answers"


async def test_a_server_that_cannot_tell_in_time_is_not_taken_for_one_without_agents(pair, monkeypatch, capsys):
    """Deny by default."""
    monkeypatch.setattr(SILENT, 60.0)
    one, other = pair
    await ended(other.sharing)
    words = ("entry", "create", *described("/spire/agent/a"), "-wait", "-waitTimeout", "300ms")
    assert await command(one, *words) == 1
    assert "1 server has not told how far its agents are" in capsys.readouterr().err


async def test_a_server_that_stops_leaves_nothing_to_wait_for(url):
    async with sharing_servers(url, 1) as (one,):
        async with live_server(database={"url": url}) as other:
            await other.server.shared.turn()
            await one.server.shared.look()
            assert len(one.server.shared) == 1
        (*_, last) = await standings(one, timeout_ms=20_000)
        assert (last.servers, last.servers_owing, last.unknown) == (1, 0, 0)


async def test_at_rest_nobody_reads_and_no_revision_is_made(pair, monkeypatch):
    """A9: in steady state a server writes its own row now and then, and that is all."""
    one, other = pair
    async with following(one), following(other):
        await standings(one, timeout_ms=20_000)
        shared = other.server.shared
        await asyncio.wait_for(settled(one, other), 20)
        before = one.state.position
        reads = []
        monkeypatch.setattr(shared, "look", lambda: reads.append(1))
        shared._written_at -= 3_600
        beat = shared._beat
        shared._wake.set()
        while shared._beat == beat:
            await asyncio.sleep(0.01)
        await other.server.store.execute(lambda uow: uow.servers.forget(0))  # stands behind that write in the queue
        assert one.state.position == other.state.position == before
        assert not reads


async def settled(*servers):
    """Until nobody answers questions any more and all are at one revision."""
    for live in servers:
        live.server.shared._answer_until = 0.0
    while len({live.state.position for live in servers}) > 1:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)


async def test_agents_are_shown_with_the_server_they_follow(pair, capsys):
    one, other = pair
    async with following(one) as here, following(other) as there:
        assert await command(one, "agent", "show", "-spiffeID", f"{TD}{there.path}") == 0
        place = rf"In force +: revision \d+ of \d+, at server {other.server.server_id} \(pushed\)"
        assert re.search(place, capsys.readouterr().out)
        page = await Stub(one.channel, PROPAGATION).ListProgress(pb.ListProgressRequest(), timeout=10)
        found = {agent.agent_id: agent.server_id for agent in page.agents}
        assert found == {f"{TD}{here.path}": "", f"{TD}{there.path}": other.server.server_id}


async def test_an_entry_is_shown_with_the_agents_that_have_it(pair, capsys):
    """Only those that may have it count, at whichever server."""
    one, other = pair
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(following(one))
        there = await stack.enter_async_context(following(other))
        (entry_id,) = await one.entries(entry(parent=there.path))
        await there.until(lambda it: it.entries)
        shown = ("entry", "show", "-entryID", entry_id)
        assert await command(one, *shown, "-inForce") == 0
        assert re.search(r"In force +: at 1 of 1 agent\n", capsys.readouterr().out)
        there.deaf = True
        change = {**entry(parent=there.path), "id": entry_id, "hint": "new"}
        await one.entry.BatchUpdateEntry(entry_pb2.BatchUpdateEntryRequest(entries=[change]), timeout=10)
        await there.until(lambda it: it.entries[entry_id].hint)
        assert await command(one, *shown, "-inForce", "-output", "json") == 0
        listed, counted = json.loads(capsys.readouterr().out)
        assert listed["entries"][0]["id"] == entry_id
        assert counted["entries"] == [
            {
                "entry_id": entry_id,
                "agents": 1,
                "reached": 0,
                "behind": [f"{TD}{there.path}"],
                "polling": 0,
                "unknown": 0,
            }
        ]
        assert await command(one, *shown) == 0
        assert "In force" not in capsys.readouterr().out, "SPIRE's output as it is"
        assert here.path not in json.dumps(counted)


async def test_a_row_of_a_stranger_is_named_and_hides_nobody(pair):
    """A row that cannot be read is an error, not a server without agents."""
    one, other = pair
    members, _ = documents([AgentProgress("/spire/agent/a", 1, connected=True)], 1)
    now = int(one.clock.now().timestamp())
    broken = ProgressRecord("stranger", 1, 0, now, digest_of(members), members, b"x")
    await one.server.store.execute(lambda uow: uow.progress.put(broken, tell=True))
    with pytest.raises(Exception, match="server_progress"):
        await standings(other, timeout_ms=1_000)
    await other.server.store.execute(lambda uow: uow.progress.remove("stranger"))
    await standings(one, timeout_ms=20_000)


async def test_a_ban_is_waited_for_where_the_agent_is(pair):
    """Invariant 5: `agent ban --wait` returns when the stream at the other server has ended."""
    one, other = pair
    async with following(other) as there:
        await one.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(there.path)))
        (*_, last) = await standings(one, timeout_ms=20_000)
        assert last.over
        assert last.connected == 0
        await there.until(lambda it: it.ended)
