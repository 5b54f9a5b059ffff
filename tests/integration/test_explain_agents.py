"""Seeded misconfigurations of agents: banned, evicted, alone, another trust domain, another time (issue 5, needs 1 and 30).

As test_explain_corpus.py; here each case has an agent of its own, because it does not outlive it.
"""

import asyncio
import os
from contextlib import AsyncExitStack

import grpc
import pytest

from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from tests.doubles.docker_engine import engine_at
from tests.doubles.kubelet import Kubelet
from tests.doubles.kubelet_files import kubelet_files
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import MovableClock, entry, live_server, spiffe_id
from tests.doubles.misconfigured import APP, DOCKER_ID, Aged, attestors, explained, in_pod, joined, web_pod
from workload_api.client import METADATA
from workload_api.service import SERVICE as WORKLOAD_API

SELF = ("--pid", str(os.getpid()))


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


@pytest.fixture
async def folder():
    async with agent_folder() as made:
        yield made


async def until(agent, capsys, code):
    """The first and the last line, once the agent knows."""
    async with asyncio.timeout(20):
        while True:
            _, first, last = await explained(agent, capsys, *SELF)
            if first.startswith(f"MUN-{code}: "):
                return first, last
            await asyncio.sleep(0.02)


async def test_a_banned_agent(live, folder, capsys):
    async with joined(live, folder) as agent:
        await live.entries(entry(parent=agent.path, selectors=OWN))
        await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)), timeout=10)
        first, last = await until(agent, capsys, "E101")
    assert "the agent is banned" in first
    assert last.startswith("To mend it: identity-server agent evict -spiffeID ")
    assert "restart the agent" in last


async def test_an_evicted_agent_whose_token_is_used_up(live, folder, capsys):
    """A19: it serves what it has, and cannot come back by the token it came with."""
    async with joined(live, folder) as agent:
        await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)), timeout=10)
        agent.sync_now()
        await agent.until(lambda: "token" in agent.agent.membership.session.why)
        first, last = await until(agent, capsys, "E102")
    assert "join token does not exist or has already been used" in first
    assert last.startswith("To mend it: a new join token is needed: run `identity-server token generate`")


async def test_an_agent_whose_token_is_none(live, folder, capsys):
    token = token_file(folder, "never-made")
    settings = {"trust_bundle_path": str(pem_bundle(live, folder)), "join_token_file": str(token)}
    async with live_agent(folder, live.server.address, **settings) as agent:
        await agent.until(lambda: agent.agent.membership.session.failures)
        first, last = await until(agent, capsys, "E102")
    assert "join token does not exist or has already been used" in first
    assert last.startswith("To mend it: a new join token is needed: run `identity-server token generate`")


async def test_an_agent_of_another_trust_domain(live, folder, capsys):
    """Its server is of example.org: the certificate that it shows is not other.org's."""
    token = token_file(folder, await live.token())
    settings = {"trust_bundle_path": str(pem_bundle(live, folder)), "join_token_file": str(token)}
    async with live_agent(folder, live.server.address, trust_domain="other.org", **settings) as agent:
        await agent.until(lambda: agent.agent.membership.session.failures)
        first, last = await until(agent, capsys, "E102")
    assert "server and agent belong to different trust domains" in first
    assert last.startswith("To mend it: correct trust_domain, or server_address")


async def test_an_agent_whose_clock_is_wrong(live, folder, capsys):
    """Ten years ahead, every certificate has ended."""
    clock = MovableClock()
    clock.move(10 * 365 * 86_400)
    token = token_file(folder, await live.token())
    settings = {"trust_bundle_path": str(pem_bundle(live, folder)), "join_token_file": str(token)}
    async with live_agent(folder, live.server.address, clock=clock, **settings) as agent:
        await agent.until(lambda: agent.agent.membership.session.failures)
        first, last = await until(agent, capsys, "E102")
    assert "a certificate expired at" in first
    assert "set this node's clock right" in last


async def test_an_agent_that_starts_while_its_server_is_away(folder, capsys):
    """Never synchronised since its start, and it says with whom it could not."""
    async with live_server() as live:
        async with joined(live, folder):
            pass
        address = live.server.address
    async with live_agent(folder, address) as agent:
        await agent.until(lambda: agent.agent.synchronize.trouble)
        first, last = await until(agent, capsys, "E103")
    assert "has not read its entries from the server yet: " in first
    assert "make the server reachable" in last


async def test_a_server_that_goes_away(folder, capsys):
    """What was known serves on; an SVID that ended is told as that, and an entry that may be missing as this."""
    clock = Aged()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(AsyncExitStack())
        live = await server.enter_async_context(live_server())
        agent = await stack.enter_async_context(joined(live, folder, clock=clock))
        await live.entries(entry(parent=agent.path, selectors=OWN, x509_svid_ttl=60))
        await agent.until(lambda: agent.agent.workloads.held_count == 1)
        await server.aclose()
        await agent.until(lambda: agent.agent.synchronize.trouble)
        clock.move(120)
        first, last = await until(agent, capsys, "E403")
        assert "the SVID of spiffe://example.org/web has ended and could not be renewed: " in first
        assert "make the server reachable" in last
        _, first, last = await explained(agent, capsys, "-selector", "unix:uid:4242424")
        assert first.startswith("MUN-E104: no entry that the agent knows matches, and it has not heard from the server")
        assert "make the server reachable" in last


async def test_those_that_are_asked_and_do_not_answer(live, folder, capsys):
    """A kubelet and an engine that hang cost the budget of an attestation, and are named."""
    (folder / "proc" / str(os.getpid())).mkdir(parents=True)
    place = folder / "proc" / str(os.getpid())
    (folder / "pki").mkdir()
    pki = kubelet_files(folder / "pki")
    with Kubelet(pki / "kubelet.crt", pki / "kubelet.key") as kubelet, engine_at(folder / "docker.sock") as engine:
        kubelet.pods = [web_pod()]
        kubelet.delay.clear()
        engine.delay.clear()
        chosen = attestors(folder, kubelet, pki)
        limits = {"attestation_seconds": 1.0}
        async with joined(live, folder, workload_attestors=chosen, limits=limits) as agent:
            asked = [*OWN, ("docker", "label:app:web")]
            await live.entries(entry(parent=agent.path, selectors=asked))
            await agent.until(lambda: agent.agent.workloads.known)
            (place / "cgroup").write_text(f"0::/system.slice/docker-{DOCKER_ID}.scope\n")
            _, first, last = await explained(agent, capsys, *SELF)
            assert first.startswith("MUN-E203: ")
            assert "docker attestor failed" in first
            assert "put right what the docker attestor says" in last
            (place / "cgroup").write_text(in_pod(APP))
            _, first, last = await explained(agent, capsys, "--pod", "shop/web-0")
            assert first.startswith("MUN-E205: ")
            assert "[attestors.k8s]" in last


async def test_pods_where_nobody_knows_pods(live, folder, capsys):
    async with joined(live, folder) as agent:
        code, first, _ = await explained(agent, capsys, "--pod", "shop/web-0")
    assert code == 1
    assert "add [attestors.k8s]" in first


async def test_calls_that_are_refused_before_anybody_is_looked_at(live, folder):
    """The header and the audience that SPIFFE asks for: the answer itself names what is missing."""
    async with joined(live, folder) as agent, unix_channel(agent.agent.settings.socket_path) as channel:
        stub = Stub(channel, WORKLOAD_API)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.FetchX509SVID(workload_pb2.X509SVIDRequest()).read()
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "security header missing" in refusal.value.details()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.FetchJWTSVID(workload_pb2.JWTSVIDRequest(), metadata=METADATA, timeout=10)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "audience" in refusal.value.details()
