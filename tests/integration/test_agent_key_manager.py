"""Where the agent's own key is (SPIRE's KeyManager): on disk it comes back as it was, from memory it attests anew."""

from node_agent.settings import from_mapping
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server


async def agent_id(folder, live, **settings):
    """Join (or come back) and serve a workload; the agent's path and what stands in its directory."""
    async with live_agent(
        folder, live.server.address, trust_bundle_path=str(pem_bundle(live, folder)), **settings
    ) as agent:
        await agent.until_joined()
        await live.entries(entry(path=f"/of{agent.path[-4:]}", parent=agent.path, selectors=OWN))
        agent.sync_now()
        await agent.until(agent.agent.workloads.all_held)
        stored = (folder / "state" / "agent-state.json").read_text()
        return agent.path, stored


async def test_a_key_on_disk_survives_a_restart_and_one_in_memory_does_not():
    async with agent_folder() as folder, live_server() as live:
        token = token_file(folder, await live.token())
        options = {"join_token_file": str(token)}
        first, stored = await agent_id(folder, live, **options)
        assert '"key"' in stored
        token.write_text("spent")
        async with live_agent(folder, live.server.address, **options) as agent:
            await agent.until_joined()
            assert agent.path == first
        token.write_text(await live.token())
        second, stored = await agent_id(folder, live, key_manager="memory", **options)
        assert second != first
        assert '"key"' not in stored
        assert "svid" not in stored
        token.write_text(await live.token())
        third, _ = await agent_id(folder, live, key_manager="memory", **options)
        assert third not in {first, second}


def test_memory_with_a_token_is_warned_of():
    def warned(**more):
        return [one for one in from_mapping({"trust_domain": "example.org", **more}).warnings() if "memory" in one]

    assert "each start needs a new token" in warned(key_manager="memory")[0]
    pop = {"private_key_path": "/k", "certificate_path": "/c"}
    assert warned(key_manager="memory", attestors={"unix": {}, "x509pop": pop}) == []
    assert warned() == []
