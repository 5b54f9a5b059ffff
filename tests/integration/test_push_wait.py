"""`--wait` and `agent show`: when a change is in force, and how far an agent is (architecture A9)."""

import asyncio
import os
import re

import pytest

from identity_server.cli import main
from identity_server.rpc.services import PROPAGATION
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.services import Stub
from tests.doubles.canned_daemon import leave_code
from tests.doubles.live_agent import agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server

TD = "spiffe://example.org"


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


@pytest.fixture
async def agent(live):
    async with agent_folder() as folder:
        token = token_file(folder, await live.token())
        settings = {"trust_bundle_path": str(pem_bundle(live, folder)), "join_token_file": str(token)}
        async with live_agent(folder, live.server.address, sync_interval="1h", **settings) as agent:
            await agent.until_joined()
            await agent.until(lambda: agent.agent.follow.up)
            yield agent


@pytest.fixture
def command(live):
    """Run a command against the live server; its exit code."""

    async def run(*words):
        return await asyncio.to_thread(leave_code, main, *words, "-socketPath", str(live.server.settings.socket_path))

    return run


def described(agent, path="/web"):
    return (
        *("-parentID", f"{TD}{agent.path}", "-spiffeID", f"{TD}{path}"),
        *("-selector", f"unix:uid:{os.getuid()}"),
    )


async def stuck(live):
    """An agent that opens its stream and acknowledges nothing that comes later."""
    raw = await live.join()
    call = Stub(raw.dialer.channel(), PROPAGATION).Follow(timeout=60)
    await call.write(pb.FollowRequest(hello=pb.Hello()))
    first = await call.read()
    await call.write(pb.FollowRequest(ack=pb.Ack(position=first.position)))
    raw.call = call
    return raw


async def test_every_kind_of_change_can_be_waited_for(live, agent, command, capsys):
    """It returns once the change is in force, for create, update, delete, bundle and ban."""
    assert await command("entry", "create", *described(agent), "--wait") == 0
    assert agent.agent.synchronize.entries
    said = capsys.readouterr()
    assert re.search(r"In force at 1 agent, after \d+ ms\.", said.err)
    (entry_id,) = agent.agent.synchronize.entries
    assert await command("entry", "update", "-entryID", entry_id, *described(agent), "-hint", "new", "-wait") == 0
    assert agent.agent.synchronize.entries[entry_id].hint == "new"
    assert await command("entry", "delete", "-entryID", entry_id, "-wait") == 0
    assert not agent.agent.synchronize.entries
    bundle = agent.agent.settings.trust_bundle_path
    assert await command("bundle", "set", "-id", "fed.test", "-path", str(bundle), "-wait") == 0
    assert await command("agent", "ban", "-spiffeID", f"{TD}{agent.path}", "-wait") == 0
    assert "In force at 0 agents" in capsys.readouterr().err


async def test_who_has_not_got_it_in_time_is_named(live, agent, command, capsys):
    raw = await stuck(live)
    words = described(raw, "/elsewhere")
    assert await command("entry", "create", *words, "-wait", "-waitTimeout", "300ms") == 1
    said = capsys.readouterr()
    assert "Entry ID" in said.out, "the change stands, and was told"
    assert "1 agent has not got it yet" in said.err
    assert raw.path in said.err
    assert agent.path not in said.err
    raw.call.cancel()


async def test_an_agent_that_polls_has_it_after_its_next_sync(live, command, capsys):
    """A sync that began before the change does not count."""
    raw = await live.join()
    await raw.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10)
    waiting = asyncio.ensure_future(command("entry", "create", *described(raw), "-wait", "-waitTimeout", "20s"))
    while not live.state.entries:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await raw.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10)
    assert await waiting == 0
    assert "1 agent, 1 of which poll" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0s", "11m", "-1", "soon"])
async def test_a_time_that_cannot_be_waited_changes_nothing(live, agent, command, text):
    assert await command("entry", "create", *described(agent), "-wait", f"-waitTimeout={text}") != 0
    assert not live.state.entries


async def test_an_agent_is_shown_with_how_far_it_is(live, agent, command, capsys):
    await live.entries(entry(parent=agent.path))
    (follower,) = live.server.followers
    await agent.until(lambda: live.server.followers.revision_of(follower) == live.state.position.revision)
    assert await command("agent", "show", "-spiffeID", f"{TD}{agent.path}") == 0
    revision = live.state.position.revision
    assert re.search(rf"In force +: revision {revision} of {revision} \(pushed\)", capsys.readouterr().out)


async def test_progress_is_listed_page_by_page(live):
    agents = [await stuck(live) for _ in range(3)]
    stub = Stub(live.channel, PROPAGATION)
    names, token = [], ""
    while True:
        page = await stub.ListProgress(pb.ListProgressRequest(page_size=2, page_token=token), timeout=10)
        names += [one.agent_id for one in page.agents]
        token = page.next_page_token
        if not token:
            break
    assert names == sorted(f"{TD}{one.path}" for one in agents)
    one = await stub.ListProgress(pb.ListProgressRequest(agent_id=names[1]), timeout=10)
    assert [found.agent_id for found in one.agents] == [names[1]]
    assert one.agents[0].connected
    for raw in agents:
        raw.call.cancel()
