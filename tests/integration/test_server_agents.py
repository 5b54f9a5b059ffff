"""Renewing, banning, listing: the Agent service over the real admin socket and the real TLS port."""

import asyncio
import json
import os
import threading
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from cryptography import x509

from identity_server.services import admission
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import Refusal, Unavailable
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from tests.authority import SpiffeTestCA
from tests.doubles.agent_calls import refusal, refused, sync
from tests.doubles.live_server import attest, failure, live_server, spiffe_id


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


async def renew(agent, key):
    request = agent_pb2.RenewAgentRequest(params={"csr": build_csr(key, spiffe_id=None)})
    return (await agent.agent.RenewAgent(request, timeout=10)).svid


async def test_both_serials_are_good_until_the_new_one_is_used(live):
    """R4, spire_wire section 2: pending, then promoted by the first call, then the old one is not active."""
    agent = await live.join()
    key = generate(KeyKind.EC_P256)
    svid = await renew(agent, key)
    await sync(agent)
    record = live.state.agents[agent.path]
    assert record.new_serial == str(x509.load_der_x509_certificate(svid.cert_chain[0]).serial_number)
    newer = await live.agent_with(svid, key)
    await sync(newer)
    await live.server.admissions.settled()
    assert live.state.agents[agent.path].serial == record.new_serial
    assert live.state.agents[agent.path].new_serial == ""
    assert await refusal(sync(agent)) is Refusal.AGENT_NOT_ACTIVE
    await sync(newer)


async def test_an_agent_may_renew_with_its_pending_certificate(live):
    agent = await live.join()
    key = generate(KeyKind.EC_P256)
    newer = await live.agent_with(await renew(agent, key), key)
    again = generate(KeyKind.EC_P256)
    newest = await live.agent_with(await renew(newer, again), again)
    await sync(newest)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (agent_pb2.RenewAgentRequest(), "params cannot be nil"),
        (agent_pb2.RenewAgentRequest(params={}), "missing CSR"),
        (agent_pb2.RenewAgentRequest(params={"csr": b"x"}), "failed to parse CSR: csr: is not a PKCS#10"),
    ],
)
async def test_a_bad_renewal_names_what_is_wrong(live, request_, words):
    agent = await live.join()
    code, text = await refused(agent.agent.RenewAgent(request_, timeout=10))
    assert code == "INVALID_ARGUMENT"
    assert text.startswith(words)


async def test_the_key_of_the_authority_is_not_certified_for_an_agent(live):
    """N-C-07."""
    agent = await live.join()
    authority = live.server.authorities.issuer.signer.key
    code, text = await refused(renew(agent, authority))
    assert code == "INVALID_ARGUMENT"
    assert "key of a signing authority" in text


async def test_a_banned_agent_is_refused_with_its_reason_and_cannot_attest_again(live):
    """S2, N-C-16, spire_wire 12.3."""
    token, key = await live.token(), generate(KeyKind.EC_P256)
    agent = await live.join(token, key)
    await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    assert await refusal(sync(agent)) is Refusal.AGENT_BANNED
    assert await refusal(renew(agent, key)) is Refusal.AGENT_BANNED
    anonymous = await live.dial()
    assert await refused(attest(anonymous.agent, token, key)) == (
        "PERMISSION_DENIED",
        "failed to attest: agent is banned",
    )
    shown = await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(agent.path)))
    assert shown.banned
    assert shown.x509svid_serial_number == ""


async def test_a_bans_connections_can_be_cut_at_once(live):
    """S2: also a stream that is open already."""
    agent, other = await live.join(), await live.join()
    await sync(agent)
    await sync(other)
    stream = agent.entry.SyncAuthorizedEntries(timeout=20)
    await stream.wait_for_connection()
    await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    assert live.server.dismiss_strangers() >= 1
    assert (await failure(stream)).code() is grpc.StatusCode.UNAVAILABLE
    await sync(other)


async def test_an_evicted_agent_is_told_so_and_its_spent_token_does_not_bring_it_back(live):
    """spire_wire 12.4."""
    token, key = await live.token(), generate(KeyKind.EC_P256)
    agent = await live.join(token, key)
    await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
    assert await refusal(sync(agent)) is Refusal.AGENT_NOT_ATTESTED
    anonymous = await live.dial()
    code, _ = await refused(attest(anonymous.agent, token, key))
    assert code == "INVALID_ARGUMENT"


async def test_an_agents_certificate_that_has_expired_is_refused_per_call(live):
    """S2, N-C-16: the connection is older than the expiry."""
    agent = await live.join()
    await sync(agent)
    live.clock.move(2 * 3600)
    assert await refusal(sync(agent)) is Refusal.AGENT_EXPIRED


async def test_a_chain_whose_authority_left_the_bundle_is_refused_per_call(live):
    """S2: CA revocation."""
    agent = await live.join()
    await sync(agent)

    def forget(uow):
        bundle = uow.bundles.get(live.state.trust_domain)
        root = bundle.x509_authorities[0]
        replaced = SpiffeTestCA("example.org").der
        uow.bundles.put(bundle.with_x509_authority(replaced).without_x509_authority(root.key_id))

    await live.server.store.execute(forget)
    code, text = await refused(sync(agent))
    assert code == "UNAUTHENTICATED"
    assert "no longer trusted" in text
    assert live.server.dismiss_strangers() == 1


async def test_a_lost_database_never_costs_an_agent_its_svid(live, monkeypatch):
    """A8: memory may say yes, only the database may say no; unreadable means Unavailable, without details."""
    agent = await live.join()
    await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))

    async def unreadable(_query):
        raise Unavailable("the disk is gone")

    monkeypatch.setattr(live.server.store, "read", unreadable)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sync(agent)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "grpc-status-details-bin" not in dict(caught.value.trailing_metadata())


async def test_a_refusal_that_memory_alone_believes_is_not_said(live):
    """A8: another server attested the agent; this one's memory is behind and asks the database."""
    agent = await live.join()
    watch = live.server.store.state
    known = watch.value
    watch.value = replace(known, agents=known.agents.delete(agent.path))
    try:
        await sync(agent)
    finally:
        watch.value = known


async def test_a_refusal_costs_one_database_read_however_many_ask(live, monkeypatch):
    """A8: single flight, and remembered for a second."""
    agent = await live.join()
    await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
    reads, read = [], live.server.store.read

    async def counted(query):
        reads.append(query)
        return await read(query)

    monkeypatch.setattr(live.server.store, "read", counted)
    refusals = await asyncio.gather(*(refusal(sync(agent)) for _ in range(50)))
    assert set(refusals) == {Refusal.AGENT_NOT_ATTESTED}
    assert len(reads) == 1


async def test_a_flood_of_refusals_is_bounded(live, monkeypatch):
    """A8: more than 64 different agents to confirm at once get Unavailable, not a queue."""
    agent = await live.join()
    await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
    monkeypatch.setattr(admission, "MAX_CONFIRMATIONS", 0)
    assert (await refused(sync(agent)))[0] == "UNAVAILABLE"


async def test_a_promotion_that_cannot_be_written_is_tried_again(live, monkeypatch):
    """A8: the pending serial is good in memory at once, and written behind."""
    agent = await live.join()
    key = generate(KeyKind.EC_P256)
    newer = await live.agent_with(await renew(agent, key), key)
    execute = live.server.store.execute

    async def full(_command):
        raise Unavailable("the disk is full")

    monkeypatch.setattr(live.server.store, "execute", full)
    await sync(newer)
    await live.server.admissions.settled()
    assert live.state.agents[agent.path].new_serial
    monkeypatch.setattr(live.server.store, "execute", execute)
    await sync(newer)
    await live.server.admissions.settled()
    assert not live.state.agents[agent.path].new_serial


async def test_the_end_of_a_server_does_not_wait_for_a_promotion_that_cannot_be_written(live):
    """R6, R24: the database is silent, and a service manager kills who takes too long to end."""
    agent = await live.join()
    key, gate = generate(KeyKind.EC_P256), threading.Event()
    newer = await live.agent_with(await renew(agent, key), key)
    held = asyncio.ensure_future(live.server.store.execute(lambda _: gate.wait(30)))
    await sync(newer)
    assert not await live.server.admissions.settled(0.05)
    gate.set()
    await held
    assert await live.server.admissions.settled(30)
    assert not live.state.agents[agent.path].new_serial


async def test_agents_are_listed_counted_filtered_and_masked(live):
    agents = [await live.join() for _ in range(3)]
    await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agents[0].path)))

    async def paths(**over):
        listed = await live.agent.ListAgents(agent_pb2.ListAgentsRequest(**over))
        return [agent.id.path for agent in listed.agents], listed.next_page_token

    assert await paths() == ([agent.path for agent in agents], "")
    first, token = await paths(page_size=2)
    assert first == [agent.path for agent in agents[:2]]
    assert await paths(page_size=2, page_token=token) == ([agents[2].path], "")
    assert (await paths(filter={"by_banned": {"value": True}}))[0] == [agents[0].path]
    assert (await paths(filter={"by_attestation_type": "x509pop"}))[0] == []
    assert (await paths(filter={"by_expires_before": "not a time"}))[0] == [agent.path for agent in agents]
    assert (await paths(filter={"by_expires_before": "2001-01-01 00:00:00 +0000 +00"}))[0] == []
    count = agent_pb2.CountAgentsRequest(filter={"by_banned": {"value": False}})
    assert (await live.agent.CountAgents(count)).count == 2
    masked = await live.agent.ListAgents(agent_pb2.ListAgentsRequest(output_mask={"attestation_type": True}))
    assert masked.agents[1].attestation_type == "join_token"
    assert masked.agents[1].x509svid_serial_number == ""
    assert masked.agents[1].id.path == agents[1].path


async def test_a_page_size_is_bounded_and_a_negative_one_refused(live):
    """S58."""
    assert await refused(live.agent.ListAgents(agent_pb2.ListAgentsRequest(page_size=-1))) == (
        "INVALID_ARGUMENT",
        "page_size must not be negative; 0 asks for everything",
    )
    await live.agent.ListAgents(agent_pb2.ListAgentsRequest(page_size=2**31 - 1))
    for token in ("garbage", "-1", "99999999999999999999", "1' OR 1=1"):
        code, _ = await refused(live.agent.ListAgents(agent_pb2.ListAgentsRequest(page_size=1, page_token=token)))
        assert code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("method", ["GetAgent", "DeleteAgent", "BanAgent"])
async def test_an_agents_id_is_checked_and_a_missing_agent_not_found(live, method):
    request = getattr(agent_pb2, f"{method}Request")
    call = getattr(live.agent, method)
    for bad in ({}, spiffe_id("/web"), spiffe_id("/spire/agent/x", "other.org"), spiffe_id("/spire/agent")):
        code, text = await refused(call(request(id=bad)))
        assert (code, text.startswith("invalid agent ID")) == ("INVALID_ARGUMENT", True), bad
    assert await refused(call(request(id=spiffe_id("/spire/agent/join_token/nobody")))) == (
        "NOT_FOUND",
        "agent not found",
    )


async def test_join_tokens_are_made_as_asked(live):
    """spire_wire 5.1; S35, S36."""
    made = await live.agent.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=60, token="my-token"))
    assert made.value == "my-token"
    assert abs(made.expires_at - live.clock.now().timestamp() - 60) < 5
    for bad in ({"ttl": 0}, {"ttl": -5}, {"ttl": 1, "token": "a/b"}, {"ttl": 1, "token": "x" * 257}):
        code, _ = await refused(live.agent.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(**bad)))
        assert code == "INVALID_ARGUMENT"
    for path in ("", "/spire/agent/x", "/spire"):
        request = agent_pb2.CreateJoinTokenRequest(ttl=1, agent_id=spiffe_id(path))
        code, text = await refused(live.agent.CreateJoinToken(request))
        assert (code, text.startswith("invalid agent ID")) == ("INVALID_ARGUMENT", True)
    code, text = await refused(live.agent.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=1, token="my-token")))
    assert code == "INTERNAL"
    assert "exists already" in text


async def test_a_token_stands_nowhere_in_clear_before_it_is_used(live):
    """A18: neither in the database file, nor in the audit log."""
    token = await live.token(token="very-secret-token-value")
    data = live.server.settings.data_dir
    files = [path for path in data.iterdir() if path.is_file()]
    files.append(data.parent / "audit.jsonl")
    assert files
    assert not [path for path in files if token.encode() in path.read_bytes()]


async def test_an_agent_posts_its_version(live):
    agent = await live.join()
    await agent.agent.PostStatus(agent_pb2.PostStatusRequest(agent_version="1.15.3", current_bundle_serial=7))
    await agent.agent.PostStatus(agent_pb2.PostStatusRequest())
    assert live.state.agents[agent.path].agent_version == "1.15.3"
    code, _ = await refused(agent.agent.PostStatus(agent_pb2.PostStatusRequest(agent_version="v" * 256)))
    assert code == "INVALID_ARGUMENT"


async def test_attestations_and_bans_are_in_the_audit_log(live):
    """A16: who did what, from where."""
    agent = await live.join()
    await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    text = (live.server.settings.data_dir.parent / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if line["event"] != "call" and line["outcome"] in {"begun", "attested"}]
    kinds = [line["event"] for line in lines]
    assert kinds[-3:] == ["join_token", "attestation", "agent"]
    assert lines[-2]["outcome"] == "attested"
    assert lines[-2]["spiffe_id"] == f"spiffe://example.org{agent.path}"
    assert lines[-1]["change"] == "ban"
    assert f"pid {os.getpid()}" in lines[-1]["actor"]
