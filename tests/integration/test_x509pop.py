"""Node attestation by x509pop between our server and our agent, and how an agent heals itself by it."""

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address

import grpc.aio
import pytest
from cryptography.x509 import IPAddress

from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import ConfigError
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import attest, entry, live_server, spiffe_id
from tests.doubles.node_pki import NodePki
from tests.doubles.x509pop_messages import payload
from workload_api.client import Redacted

PKI = NodePki()


@asynccontextmanager
async def joined(node, **settings):
    """A server that believes the PKI, and an agent with a node's certificate."""
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(agent_folder())
        table = {"ca_bundle_path": str(PKI.bundle(folder)), **settings.pop("server", {})}
        live = await stack.enter_async_context(live_server(attestors={"x509pop": table}, **settings))
        bundle = pem_bundle(live, folder)
        agent = await stack.enter_async_context(
            live_agent(
                folder,
                live.server.address,
                trust_bundle_path=str(bundle),
                attestors={"x509pop": node.files(folder)},
            )
        )
        await agent.until_joined()
        yield live, agent


async def test_an_agent_joins_by_its_certificate_and_serves():
    """Spire_wire section 7: the record has the type, the selectors and the path; workloads get SVIDs (unix by default)."""
    node = PKI.node("rack7", ca=PKI.intermediate(), uris=("x509pop://example.org/rack/7",))
    async with joined(node, server={"agent_path_template": "/x509pop/{{ .Subject.CommonName }}"}) as (live, agent):
        assert agent.path == "/spire/agent/x509pop/rack7"
        record = await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(agent.path)))
        assert (record.attestation_type, record.can_reattest) == ("x509pop", True)
        found = {f"{selector.type}:{selector.value}" for selector in record.selectors}
        assert {"x509pop:subject:cn:rack7", "x509pop:san:rack:7"} <= found
        await live.entries(entry(path="/web", parent=agent.path, selectors=OWN))
        agent.sync_now()
        async for context in agent.client.watch_x509():
            if not isinstance(context, Redacted):
                assert [one.spiffe_id.path for one in context.svids] == ["/web"]
                break


async def test_node_selectors_place_entries_on_the_node():
    """An alias by `x509pop:san`: the entries below it reach every node of the rack."""
    node = PKI.node(uris=("x509pop://example.org/rack/7",))
    async with joined(node) as (live, agent):
        await live.entries(
            entry(path="/rack/7", parent="/spire/server", selectors=(("x509pop", "san:rack:7"),)),
            entry(path="/web", parent="/rack/7", selectors=OWN),
        )
        agent.sync_now()
        await agent.until(
            lambda: "/web" in {held.identity.spiffe_id.path for _, held in agent.agent.workloads.all_held()}
        )


async def test_an_evicted_agent_heals_without_a_human():
    """Issue item 11: AGENT_NOT_ATTESTED, then it attests anew, is the same agent and serves on."""
    async with joined(PKI.node()) as (live, agent):
        path, membership = agent.path, agent.agent.membership
        await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(path)))
        agent.sync_now()
        await agent.until(lambda: membership.session.generation == 2 and membership.session.is_member)
        record = await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(path)))
        assert record.id.path == agent.path == path
        agent.sync_now()
        await agent.until(lambda: agent.agent.workloads.ready)
        assert await agent.health() == "SERVING"


async def test_a_renewal_is_a_new_attestation():
    """RenewAgent would answer AGENT_MUST_REATTEST: the agent attests instead, and its serial changes at once."""
    async with joined(PKI.node()) as (live, agent):
        before = await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(agent.path)))
        membership = agent.agent.membership
        membership.session = replace(membership.session, renew_at=membership._steady.now())
        membership._wake.set()
        await agent.until(lambda: membership.session.generation == 2)
        after = await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(agent.path)))
        assert after.x509svid_serial_number != before.x509svid_serial_number


async def test_a_banned_agent_does_not_heal():
    """A19: the certificate is good, the agent is not."""
    async with joined(PKI.node()) as (live, agent):
        await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
        agent.sync_now()
        await agent.until(lambda: agent.agent.membership.session.phase.value == "rejected")


async def test_a_replaced_certificate_lets_a_refused_node_in():
    """The PKI renews it; nobody restarts the agent."""
    async with agent_folder() as folder:
        tables = {"x509pop": {"ca_bundle_path": str(PKI.bundle(folder))}}
        async with live_server(attestors=tables) as live:
            bundle = pem_bundle(live, folder)
            stranger = NodePki(name="Other").node()
            settings = {"trust_bundle_path": str(bundle), "attestors": {"x509pop": stranger.files(folder)}}
            async with live_agent(folder, live.server.address, **settings) as agent:
                await agent.until(lambda: agent.agent.membership.session.failures)
                assert "certificate verification failed" in agent.agent.membership.session.why
                PKI.node().files(folder)
                agent.agent.membership._wake.set()
                await agent.until_joined()


async def test_a_certificate_joins_only_from_an_address_it_names():
    """`verify_client_ip` (SPIRE 1.15.2): the peer of the TLS connection counts; the refused agent says why and heals."""
    async with agent_folder() as folder:
        tables = {"x509pop": {"ca_bundle_path": str(PKI.bundle(folder)), "verify_client_ip": True}}
        async with live_server(attestors=tables) as live:
            bundle = pem_bundle(live, folder)
            elsewhere = PKI.node(other_names=(IPAddress(ip_address("192.0.2.7")),))
            settings = {"trust_bundle_path": str(bundle), "attestors": {"x509pop": elsewhere.files(folder)}}
            async with live_agent(folder, live.server.address, **settings) as agent:
                await agent.until(lambda: agent.agent.membership.session.failures)
                assert "client IP 127.0.0.1 does not match any certificate IP SAN" in agent.agent.membership.session.why
                PKI.node(other_names=(IPAddress(ip_address("127.0.0.1")),)).files(folder)
                agent.agent.membership._wake.set()
                await agent.until_joined()


async def test_on_the_admin_socket_a_certificate_has_no_address():
    """`verify_client_ip`: deny by default, with SPIRE's code for it."""
    async with agent_folder() as folder:
        named = PKI.node(other_names=(IPAddress(ip_address("127.0.0.1")),))
        tables = {"x509pop": {"ca_bundle_path": str(PKI.bundle(folder)), "verify_client_ip": True}}
        async with live_server(attestors=tables) as live:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await attest(live.agent, payload(named.leaf), generate(KeyKind.EC_P256), "x509pop")
            assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_node_proves_itself_in_one_way():
    async with agent_folder() as folder:
        token = token_file(folder, "t")
        settings = {"attestors": {"x509pop": PKI.node().files(folder)}, "insecure_bootstrap": True}
        with pytest.raises(ConfigError, match="one way"):
            async with live_agent(folder, ("127.0.0.1", 1), join_token_file=str(token), **settings):
                pass


async def test_an_unknown_attestor_of_the_server_is_refused_at_start():
    with pytest.raises(ConfigError, match=r"no attestor is called 'x508pop'.*join_token, k8s_psat, x509pop"):
        async with live_server(attestors={"x508pop": {}}):
            pass
