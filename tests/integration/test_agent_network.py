"""An agent behind a network that fails it: delays, resets, refusals, a path that swallows everything (R40)."""

from contextlib import asynccontextmanager

from node_agent import change_stream, server_calls
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server
from tests.doubles.network import network


@asynccontextmanager
async def joined():
    """An agent that reaches its server through a network, with its first SVID for this process."""
    async with live_server() as live, network(live.server.address) as net, agent_folder() as folder:
        settings = {
            "trust_bundle_path": str(pem_bundle(live, folder)),
            "join_token_file": str(token_file(folder, await live.token())),
        }
        async with live_agent(folder, net.address, **settings) as agent:
            await agent.until_joined()
            await live.entries(entry("/web", parent=agent.path, selectors=OWN))
            await agent.until(agent.agent.workloads.all_held)
            yield live, net, agent


async def arrives(live, agent, path):
    """A new entry reaches the agent by itself, with its SVID."""
    await live.entries(entry(path, parent=agent.path, selectors=OWN))
    held = agent.agent.workloads
    await agent.until(lambda: path in {held.entries[one].spiffe_id.path for one, _ in held.all_held()}, seconds=50)


async def test_a_path_that_swallows_everything_is_left_for_another(monkeypatch):
    """No answer, no reset: the next call after the one that waited in vain goes over a new connection."""
    monkeypatch.setattr(server_calls, "CALL_SECONDS", 1.0)
    monkeypatch.setattr(change_stream, "SILENCE_SECONDS", 2.0)
    async with joined() as (live, net, agent):
        net.swallow()
        opened = net.opened
        assert (await agent.client.fetch_x509()).svids
        await arrives(live, agent, "/later")
        assert net.opened > opened


async def test_an_outage_ends_and_everything_is_as_before():
    async with joined() as (live, net, agent):
        net.refusing = True
        net.cut()
        await agent.until(lambda: not agent.agent.synchronize.synced)
        assert (await agent.client.fetch_x509()).svids
        assert await agent.health() == "SERVING"
        net.refusing = False
        await arrives(live, agent, "/later")


async def test_connections_that_break_again_and_again_are_no_storm():
    """One in twenty pieces of data resets the connection: entries arrive all the same, over few connections at a time."""
    async with joined() as (live, net, agent):
        net.reset_every = 20
        for number in range(3):
            await arrives(live, agent, f"/later{number}")
        assert net.most_open <= 3


async def test_half_a_second_for_each_piece_is_only_slow():
    async with joined() as (live, net, agent):
        net.delay = 0.5
        await arrives(live, agent, "/later")
        assert net.most_open <= 3
