"""Changes take effect at once: a real agent on a real server's push stream (architecture A9)."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from deploy.demo.stack import free_port
from identity_server.rpc import propagation_api
from identity_server.rpc.services import PROPAGATION
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.services import Stub
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server, spiffe_id
from workload_api.client import Redacted

NEVER = "1h"
"""The agents of this file would poll so seldom that only the push stream can bring anything."""


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


@pytest.fixture
async def folder():
    async with agent_folder() as made:
        yield made


@asynccontextmanager
async def joined(live, folder, address=None, **settings):
    token = token_file(folder, await live.token())
    bundle = pem_bundle(live, folder)
    settings = {"trust_bundle_path": str(bundle), "join_token_file": str(token), "sync_interval": NEVER, **settings}
    async with live_agent(folder, address or live.server.address, **settings) as agent:
        await agent.until_joined()
        yield agent


def own(agent, path="/web", **over):
    return entry(path=path, parent=agent.path, selectors=OWN, **over)


@pytest.fixture
async def raw(live):
    """An agent of bare calls, and how to open its stream."""
    agent = await live.join()
    stub = Stub(agent.dialer.channel(), PROPAGATION)

    def follow(position=""):
        call = stub.Follow(timeout=30)
        return call, call.write(pb.FollowRequest(hello=pb.Hello(position=position)))

    agent.follow = follow
    return agent


async def opened(raw, position=""):
    call, hello = raw.follow(position)
    await hello
    return call, await asyncio.wait_for(call.read(), 10)


async def delete(live, *ids):
    await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=ids), timeout=10)


async def test_entries_reach_an_open_stream_without_a_poll(live, folder):
    """Created, changed, deleted, deleted for good: with polls an hour apart."""
    async with joined(live, folder) as agent:
        await agent.until(lambda: agent.agent.follow.up)
        (first,) = await live.entries(own(agent))
        await agent.until(lambda: agent.agent.workloads.held_count == 1)
        states = agent.client.watch_x509()

        async def until(*wanted):
            async for context in states:
                svids = () if isinstance(context, Redacted) else context.svids
                if sorted((one.spiffe_id.path, one.hint) for one in svids) == list(wanted):
                    return

        async with asyncio.timeout(20):
            await until(("/web", ""))
            change = entry_pb2.BatchUpdateEntryRequest(entries=[{**own(agent), "id": first, "hint": "new"}])
            await live.entry.BatchUpdateEntry(change, timeout=10)
            await until(("/web", "new"))
            (second,) = await live.entries(own(agent, "/db"))
            await until(("/db", ""), ("/web", "new"))
            await delete(live, first)
            await until(("/db", ""))
            await delete(live, second)
            await until()
        await states.aclose()


async def test_what_is_in_force_is_acknowledged(live, folder):
    """Acknowledged means applied, and written to every workload stream that it concerns."""
    async with joined(live, folder) as agent:
        (first,) = await live.entries(own(agent))
        await agent.until(lambda: agent.agent.workloads.held_count == 1)
        stream = agent.x509_stream()
        await asyncio.wait_for(stream.read(), 10)
        await live.entries(own(agent, "/db"))
        (follower,) = live.server.followers
        await agent.until(lambda: live.server.followers.revision_of(follower) == live.state.position.revision)
        assert len(agent.agent.workloads.all_held()) == 2
        answer = await asyncio.wait_for(stream.read(), 0.5)
        while len(answer.svids) < 2:  # the change of the entry and its SVID may be two messages, both written by now
            answer = await asyncio.wait_for(stream.read(), 0.5)
        assert first
        stream.cancel()


async def test_a_federated_bundle_reaches_workloads(live, folder):
    async with joined(live, folder) as agent:
        request = bundle_pb2.BatchSetFederatedBundleRequest(
            bundle=[{"trust_domain": "fed.test", "x509_authorities": [{"asn1": live.state.bundles.own.x509_roots[0]}]}]
        )
        await live.bundle.BatchSetFederatedBundle(request, timeout=10)
        await live.entries(own(agent, federates_with=["fed.test"]))
        await agent.until(lambda: len(agent.agent.workloads.bundles.federated) == 1)
        gone = bundle_pb2.BatchDeleteFederatedBundleRequest(
            trust_domains=["fed.test"], mode=bundle_pb2.BatchDeleteFederatedBundleRequest.DISSOCIATE
        )
        await live.bundle.BatchDeleteFederatedBundle(gone, timeout=10)
        await agent.until(lambda: not agent.agent.workloads.bundles.federated)


async def test_a_ban_is_known_at_once(live, folder):
    """A19, with polls an hour apart: the stream ends, opening it again is refused with the reason."""
    async with joined(live, folder) as agent:
        await live.entries(own(agent))
        await agent.until(lambda: agent.agent.workloads.held_count == 1)
        await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)), timeout=10)
        await agent.until(lambda: agent.agent.workloads.banned, 5)


async def test_an_evicted_agent_is_told(live, folder):
    async with joined(live, folder) as agent:
        await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)), timeout=10)
        await agent.until(lambda: not agent.agent.membership.session.is_member, 5)
        assert not agent.agent.workloads.banned


async def test_a_renewed_agent_goes_on_with_its_new_certificate(live, folder):
    """The stream of the old serial ends; the next one costs no snapshot."""
    async with joined(live, folder) as agent:
        await live.entries(own(agent))
        await agent.until(lambda: agent.agent.workloads.held_count == 1)
        generation = agent.agent.membership.session.generation
        agent.agent.membership._feed(agent_replace())
        await agent.until(lambda: agent.agent.membership.session.generation > generation)
        await live.entries(own(agent, "/db"))
        await agent.until(lambda: agent.agent.workloads.held_count == 2)


def agent_replace():
    from node_agent.domain.session import Replace

    return Replace("for a test")


async def test_without_push_an_agent_polls(live, folder):
    async with joined(live, folder, push=False, sync_interval="200ms") as agent:
        assert agent.agent.follow is None
        await live.entries(own(agent))
        await agent.until(lambda: agent.agent.workloads.held_count == 1)
        assert not len(live.server.followers)


async def test_after_a_restart_of_the_server_only_what_differs_is_sent(folder):
    """A position of another life is unknown: the agent says what it holds (resume without a snapshot)."""
    from pathlib import Path

    base = Path(folder) / "server"
    base.mkdir()
    port = free_port()
    async with live_server(base, bind_port=port) as live:
        raw = await live.join()
        ids = await live.entries(*(entry(path=f"/e{number}", parent=raw.path) for number in range(3)))
        stub = Stub(raw.dialer.channel(), PROPAGATION)
        call = stub.Follow(timeout=30)
        await call.write(pb.FollowRequest(hello=pb.Hello()))
        first = await call.read()
        assert sorted(one.id for one in first.entries) == sorted(ids)
        assert first.all_entries
        stamps = [
            pb.Stamp(id=one.id, revision_number=one.revision_number, created_at=one.created_at) for one in first.entries
        ]
        call.cancel()
        own_svid, key = raw.own, raw.key
    async with live_server(base, bind_port=port) as live:
        await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=ids[:1]), timeout=10)
        (new,) = await live.entries(entry(path="/new", parent=raw.path))
        raw = await live.agent_with(own_svid, key)
        call = Stub(raw.dialer.channel(), PROPAGATION).Follow(timeout=30)
        await call.write(pb.FollowRequest(hello=pb.Hello(position=first.position)))
        assert (await call.read()).compare
        await call.write(pb.FollowRequest(stamps=pb.Stamps(stamps=stamps[:2], more=True)))
        await call.write(pb.FollowRequest(stamps=pb.Stamps(stamps=stamps[2:])))
        answer = await call.read()
        assert [one.id for one in answer.entries] == [new]
        assert list(answer.removed_entries) == ids[:1]
        assert answer.all_bundles
        assert not answer.all_entries
        call.cancel()


async def test_an_agent_that_keeps_its_stamps_to_itself_is_told_to_open_the_stream_again(raw, monkeypatch):
    """A9: it was asked and says nothing; that is no failure of ours."""
    monkeypatch.setattr(propagation_api, "STAMPS_SECONDS", 0.05)
    call = Stub(raw.dialer.channel(), PROPAGATION).Follow(timeout=30)
    await call.write(pb.FollowRequest(hello=pb.Hello(position="1.1.1")))
    assert (await call.read()).compare
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "stamps" in refused.value.details()


async def test_many_entries_come_in_parts(live, raw):
    """Nothing is applied before the last part; every part is bounded."""
    await live.entries(*(entry(path=f"/e{number}", parent=raw.path) for number in range(500)))
    await live.entries(*(entry(path=f"/f{number}", parent=raw.path) for number in range(400)))
    call, hello = raw.follow()
    await hello
    parts = [await call.read()]
    while parts[-1].more:
        parts.append(await call.read())
    assert len(parts) == 2
    assert sum(len(one.entries) for one in parts) == 900
    assert max(len(one.entries) for one in parts) <= 500
    assert len({one.position for one in parts}) == 1
    call.cancel()


async def test_a_stream_goes_on_from_the_position_it_was_told(live, raw):
    call, first = await opened(raw)
    call.cancel()
    await asyncio.gather(call.wait_for_connection(), return_exceptions=True)
    await live.entries(entry(path="/web", parent=raw.path))
    call, second = await opened(raw, first.position)
    assert not second.compare
    assert [one.spiffe_id.path for one in second.entries] == ["/web"]
    assert not second.HasField("bundle")
    call.cancel()


@pytest.mark.parametrize(
    "step",
    [
        pb.FollowRequest(),
        pb.FollowRequest(ack=pb.Ack(position="1.1.1")),
        pb.FollowRequest(stamps=pb.Stamps()),
        pb.FollowRequest(hello=pb.Hello(position="9" * 65)),
    ],
    ids=["nothing", "an acknowledgement", "stamps", "an endless position"],
)
async def test_a_stream_begins_with_a_hello(raw, step):
    call = Stub(raw.dialer.channel(), PROPAGATION).Follow(timeout=10)
    await call.write(step)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "hello" in refused.value.details()


async def test_a_stream_that_has_begun_takes_acknowledgements_only(raw):
    call, _ = await opened(raw)
    await call.write(pb.FollowRequest(hello=pb.Hello()))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_only_agents_follow(live):
    """S1: neither an administrator on the socket nor a stranger."""
    for channel in (live.channel, (await live.dial()).dialer.channel()):
        call = Stub(channel, PROPAGATION).Follow(timeout=10)
        await call.write(pb.FollowRequest(hello=pb.Hello()))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}


async def test_a_server_that_goes_down_says_so(live, raw):
    """A7."""
    call, _ = await opened(raw)
    live.server.drain.begin()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "restarting" in ended.value.details()
