"""Our server and our agent with k8s_psat, and a simulated API server between them: joining, healing, bans."""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from tests.doubles.kube_api import KubeApi, KubePki
from tests.doubles.kube_cluster import KubeCluster
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle
from tests.doubles.live_server import entry, live_server, spiffe_id

ACCOUNT = "muniment:node-agent"


@pytest.fixture
def api(tmp_path):
    with KubeApi(KubeCluster(), KubePki(tmp_path)) as started:
        started.cluster.add_node()
        started.cluster.add_pod()
        yield started


def project(api, folder, **claims):
    """What the kubelet does: a fresh token for the agent's pod."""
    (pod,) = [one for (_, name), one in api.cluster.pods.items() if name.startswith("agent-")]
    (folder / "psat").write_text(api.cluster.token(pod, **claims))


@asynccontextmanager
async def server_of(api, folder):
    cluster = {
        "service_account_allow_list": [ACCOUNT],
        "kube_config_file": str(api.kubeconfig(folder / "kubeconfig")),
        "allowed_node_label_keys": ["kubernetes.io/hostname"],
    }
    async with live_server(attestors={"k8s_psat": {"clusters": {"prod": cluster}}}) as live:
        yield live


@asynccontextmanager
async def agent_of(api, live, folder):
    table = {"cluster": "prod", "token_path": str(folder / "psat")}
    bundle = str(pem_bundle(live, folder))
    async with live_agent(
        folder, live.server.address, trust_bundle_path=bundle, attestors={"k8s_psat": table}
    ) as agent:
        yield agent


@asynccontextmanager
async def joined(api):
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(agent_folder())
        project(api, folder)
        live = await stack.enter_async_context(server_of(api, folder))
        agent = await stack.enter_async_context(agent_of(api, live, folder))
        await agent.until_joined()
        yield live, agent, folder


async def test_an_agent_joins_by_its_pods_token_and_an_alias_reaches_it(api):
    """Spire_wire section 7: type, path, selectors; entries below an alias by `agent_ns` and `agent_sa` get there."""
    async with joined(api) as (live, agent, _):
        node = api.cluster.nodes["node-1"]["metadata"]["uid"]
        assert agent.path == f"/spire/agent/k8s_psat/prod/{node}"
        record = await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(agent.path)))
        assert (record.attestation_type, record.can_reattest) == ("k8s_psat", True)
        found = {f"{selector.type}:{selector.value}" for selector in record.selectors}
        assert "k8s_psat:agent_node_label:kubernetes.io/hostname:node-1" in found
        alias = (("k8s_psat", "agent_ns:muniment"), ("k8s_psat", "agent_sa:node-agent"))
        await live.entries(
            entry(path="/nodes", parent="/spire/server", selectors=alias),
            entry(path="/web", parent="/nodes", selectors=OWN),
        )
        agent.sync_now()
        await agent.until(
            lambda: "/web" in {held.identity.spiffe_id.path for _, held in agent.agent.workloads.all_held()}
        )


async def test_an_evicted_agent_heals_with_the_token_of_that_moment(api):
    """Issue item 8: AGENT_NOT_ATTESTED, a new attestation, the same agent."""
    async with joined(api) as (live, agent, folder):
        path, membership = agent.path, agent.agent.membership
        project(api, folder)
        await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(path)))
        agent.sync_now()
        await agent.until(lambda: membership.session.generation == 2 and membership.session.is_member)
        assert agent.path == path


async def test_the_token_of_a_banned_node_lets_nobody_in(api):
    """A19: a copy of the token on another machine is the banned agent all the same; a new pod of the node too."""
    async with joined(api) as (live, agent, folder):
        await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
        async with agent_folder() as elsewhere:
            (elsewhere / "psat").write_text((folder / "psat").read_text())
            async with agent_of(api, live, elsewhere) as thief:
                membership = thief.agent.membership
                await thief.until(lambda: membership.session.failures or membership.session.phase.value == "rejected")
                assert "banned" in membership.session.why
                assert not thief.path
        async with agent_folder() as restarted:
            api.cluster.add_pod()
            project(api, restarted)
            async with agent_of(api, live, restarted) as again:
                membership = again.agent.membership
                await again.until(lambda: membership.session.failures or membership.session.phase.value == "rejected")
                assert "banned" in membership.session.why


async def test_an_api_server_that_is_away_delays_and_a_new_token_lets_a_refused_node_in(api):
    """An expired token is refused until the kubelet brings the next; while nobody can review that, nothing is decided."""
    async with agent_folder() as folder:
        project(api, folder, seconds=-60)
        async with server_of(api, folder) as live, agent_of(api, live, folder) as agent:
            membership = agent.agent.membership
            await agent.until(lambda: membership.session.failures)
            assert "not authenticated" in membership.session.why
            api.canned = {"/": (503, b"{}")}
            project(api, folder)
            membership._wake.set()
            await agent.until(lambda: "cannot be asked now" in membership.session.why)
            api.canned = {}
            membership._wake.set()
            await agent.until_joined()
