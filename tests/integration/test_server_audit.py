"""Who did what, to what, from where, with what outcome: the audit log of a real server (architecture A16, S1, S21, S64)."""

import asyncio
import json
import logging
import os
import sys
import threading
from pathlib import Path

import grpc
import grpc.aio
import pytest

from attestors.api import Challenge
from identity_server.domain.access import ACCESS
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.runtime.request_id import TRAILER
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2
from tests.doubles.live_server import attest, entry, live_server, params, sign, spiffe_id, wanted
from tests.integration.test_server_access import METHODS, STREAMS, callers

KEY = generate(KeyKind.EC_P256)
CSR = build_csr(KEY, spiffe_id=None)


@pytest.fixture
async def live():
    level = logging.getLogger().level
    async with live_server() as server:
        yield server
    logging.getLogger().setLevel(level)


async def lines(live, event=None):
    """Every line so far, also those that waited in the queue."""
    sink = live.server.audit
    async with asyncio.timeout(10):
        while sink._queue:
            await asyncio.sleep(0.005)
    with sink._writing:
        found = [json.loads(line) for line in sink._path.read_text().splitlines()]
    return [line for line in found if event in {None, line["event"]}]


async def outcomes(live, event):
    return [(one.get("change", ""), one["outcome"]) for one in await lines(live, event)]


async def called(channel, method):
    """Whether an empty call was served, and the request id that came back with the answer."""
    streams = method.rsplit("/", 1)[1] in STREAMS
    call = channel.stream_stream(method)(iter([b""]), timeout=10) if streams else channel.unary_unary(method)(b"")
    try:
        if streams:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, dict(error.trailing_metadata())[TRAILER]
    return "OK", dict(await call.trailing_metadata())[TRAILER]


async def test_every_call_by_every_kind_of_caller_leaves_a_line_with_its_outcome(live):
    """S1, A16: the matrix again; who called, from where, what, when, and whether it was served or refused."""
    expected = []
    for name, (channel, held) in (await callers(live)).items():
        for method in (one for one in METHODS if "grpc.health" not in one):
            code, request = await called(channel, method)
            expected.append((name, method, held & ACCESS[method], code, request))
    by_request = {line["request_id"]: line for line in await lines(live, "call")}
    assert len({one[-1] for one in expected}) == len(expected), "no two calls share an id"
    for name, method, allowed, code, request in expected:
        line = by_request[request]
        assert line["method"] == method[1:], (name, method)
        assert line["outcome"] == ("done" if code == "OK" else "refused"), (name, method, line)
        assert ("reason" in line) == (code != "OK")
        assert line["time"].endswith("+00:00")
        who = line["caller"]
        assert ("as" in who) == bool(allowed), (name, method, line)
        if name == "local":
            assert (who["pid"], who["uid"], who["gid"]) == (os.getpid(), os.getuid(), os.getgid())
            assert Path(who["path"]).samefile(sys.executable)
        else:
            assert who["address"].startswith("127.0.0.1:")
            assert ("spiffe_id" in who, "serial" in who) == (name != "anonymous",) * 2


async def test_an_entrys_life_is_written_with_its_revisions(live):
    """Each change before it happens and once more with what became of it; also what could not even be read (S27)."""
    (made,) = await live.entries(entry())
    await live.entry.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[entry(), entry("not a path")]))
    await live.entry.BatchUpdateEntry(entry_pb2.BatchUpdateEntryRequest(entries=[{**entry("/new"), "id": made}]))
    await live.entry.BatchUpdateEntry(entry_pb2.BatchUpdateEntryRequest(entries=[{**entry(), "id": "none"}]))
    await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made, "none", ""]))
    found = await lines(live, "entry")
    ended = [line for line in found if line["outcome"] != "begun"]
    assert [(one["change"], one["outcome"]) for one in ended] == [
        ("create", "done"),
        ("create", "refused"),
        ("create", "refused"),
        ("update", "done"),
        ("update", "refused"),
        ("delete", "done"),
        ("delete", "refused"),
        ("delete", "refused"),
    ]
    done = [line for line in ended if line["outcome"] == "done"]
    assert [(one["entry_id"], one["spiffe_id"], one["revision_number"]) for one in done] == [
        (made, "spiffe://example.org/web", 0),
        (made, "spiffe://example.org/new", 1),
        (made, "spiffe://example.org/new", 1),
    ]
    reasons = {one["reason"] for one in ended if one["outcome"] == "refused"}
    assert "similar entry already exists" in reasons
    assert any(reason.startswith("failed to convert entry: ") for reason in reasons)
    assert all(line["caller"]["uid"] == os.getuid() and line["caller"]["as"] == "local" for line in found)


async def test_refused_bans_evictions_and_tokens_are_written(live):
    agent = await live.join()
    for name in (agent.path, "/spire/agent/join_token/none", "/workload"):
        for act, request in (
            (live.agent.BanAgent, agent_pb2.BanAgentRequest),
            (live.agent.DeleteAgent, agent_pb2.DeleteAgentRequest),
        ):
            if name == agent.path:
                await act(request(id=spiffe_id(name)), timeout=10)
            else:
                await refusal(act(request(id=spiffe_id(name)), timeout=10))
    ended = [line for line in await lines(live, "agent") if line["outcome"] != "begun"]
    assert [(one["change"], one["outcome"]) for one in ended] == [
        ("ban", "done"),
        ("delete", "done"),
        ("ban", "refused"),
        ("delete", "refused"),
        ("ban", "refused"),
        ("delete", "refused"),
    ]
    refused = [line for line in await lines(live, "call") if line["outcome"] == "refused"]
    assert [line["method"].rpartition("/")[2] for line in refused].count("BanAgent") == 2
    token = await live.token(token="not-written-anywhere")
    with pytest.raises(grpc.aio.AioRpcError):
        await live.token(token=token)
    assert (await outcomes(live, "join_token"))[-4:] == [("", one) for one in ("begun", "done", "begun", "failed")]
    assert token not in live.server.audit._path.read_text()


class Asks:
    """A node verifier that asks one question and takes "right" for an answer."""

    name = "asks"
    blocking = False

    def verify(self, payload, key_digest):
        from attestors.api import Attested
        from spiffe_core.errors import Forbidden

        answer = yield Challenge(b"who?")
        if answer != b"right":
            raise Forbidden("wrong answer\n{forged}")
        return Attested(agent_path="/spire/agent/asks/one", selectors=frozenset(), may_reattest=True)


async def test_every_verdict_on_a_node_is_written_also_inside_the_dialogue(live):
    """A16: an unknown attestor, a spent token, a wrong answer to a challenge, silence; and the node that proved itself."""
    live.server.attest._verifiers["asks"] = Asks()
    token = await live.token()
    await live.join(token)
    stub = (await live.dial()).agent
    for attempt in (params("x", KEY, "nobody\nknows"), params(token, KEY), params("never-made", KEY)):
        call = stub.AttestAgent(timeout=20)
        await call.write(attempt)
        with pytest.raises(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
    for answer in (b"wrong", b"", b"right"):
        call = stub.AttestAgent(timeout=20)
        await call.write(params("x", KEY, "asks"))
        assert (await call.read()).challenge == b"who?"
        await call.write(agent_pb2.AttestAgentRequest(challenge_response=answer))
        if answer == b"right":
            assert (await call.read()).result.svid.id.path == "/spire/agent/asks/one"
            await call.done_writing()
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
    found = await lines(live, "attestation")
    assert [(one["attestation_type"], one["outcome"]) for one in found] == [
        ("join_token", "attested"),
        ("nobody\nknows", "refused"),
        ("join_token", "refused"),
        ("join_token", "refused"),
        ("asks", "refused"),
        ("asks", "refused"),
        ("asks", "attested"),
    ]
    assert all(one["reason"] for one in found if one["outcome"] == "refused")
    assert found[-1]["spiffe_id"] == "spiffe://example.org/spire/agent/asks/one"
    assert found[-1]["serial"].isdigit()
    assert "never-made" not in live.server.audit._path.read_text()


async def test_what_is_issued_and_what_is_refused_in_a_batch_is_written(live):
    """S21, S27: serial and entry revision of each certificate; who asked for an entry of somebody else."""
    one, two = await live.join(), await live.join()
    (mine,) = await live.entries(entry("/mine", one.path))
    (foreign,) = await live.entries(entry("/foreign", two.path))
    await sign(one, wanted(mine, KEY), wanted(mine, csr=b"junk"), wanted(foreign, KEY))
    await one.svid.NewJWTSVID(svid_pb2.NewJWTSVIDRequest(entry_id=mine, audience=["a"]), timeout=10)
    await live.svid.MintX509SVID(
        svid_pb2.MintX509SVIDRequest(csr=build_csr(KEY, spiffe_id="spiffe://example.org/minted")), timeout=10
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await live.svid.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=b"junk"), timeout=10)
    leaf, minted = (line for line in await lines(live, "x509_svid") if line["profile"] != "server")
    assert (leaf["spiffe_id"], leaf["entry_id"], leaf["revision_number"]) == ("spiffe://example.org/mine", mine, 0)
    assert leaf["serial"].isdigit()
    assert leaf["caller"]["spiffe_id"] == f"spiffe://example.org{one.path}"
    assert (minted["profile"], minted["caller"]["as"]) == ("mint", "local")
    (token,) = await lines(live, "token")
    assert (token["outcome"], token["entry_id"]) == ("done", mine)
    refused = await lines(live, "refused")
    assert [(one["entry_id"], one["outcome"]) for one in refused] == [(mine, "refused"), (foreign, "refused")]
    assert refused[1]["spiffe_id"] == "spiffe://example.org/foreign"


async def test_bundles_relationships_authorities_and_the_log_level_are_written_with_their_outcomes(live):
    foreign = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=["fed.test", "example.org"])
    await live.bundle.BatchDeleteFederatedBundle(foreign, timeout=10)
    gone = trustdomain_pb2.BatchDeleteFederationRelationshipRequest(trust_domains=["fed.test", "not valid"])
    await live.trust_domain.BatchDeleteFederationRelationship(gone, timeout=10)
    await live.local.PrepareX509Authority(localauthority_pb2.PrepareX509AuthorityRequest(), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError):
        await live.local.TaintX509Authority(
            localauthority_pb2.TaintX509AuthorityRequest(authority_id="nope"), timeout=10
        )
    await live.channel.unary_unary("/spire.api.server.logger.v1.Logger/ResetLogLevel")(b"", timeout=10)
    assert await outcomes(live, "bundle") == [("delete", "refused"), ("delete", "begun"), ("delete", "refused")]
    assert await outcomes(live, "federation") == [("delete", "refused"), ("delete", "begun"), ("delete", "refused")]
    by_hand = [line for line in await lines(live, "authority") if "caller" in line]
    assert [(one["change"], one["outcome"]) for one in by_hand] == [
        ("prepare", "begun"),
        ("prepare", "done"),
        ("taint", "begun"),
        ("taint", "refused"),
    ]
    assert await outcomes(live, "log_level") == [("", "begun"), ("", "done")]


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


async def test_without_room_for_its_line_nothing_is_changed_and_no_node_joins(live):
    """A16, R11: a full disk under the audit log fails administrators and attestations closed; leaves go on."""
    agent = await live.join()
    (mine,) = await live.entries(entry(parent=agent.path))
    token, sink, revision = await live.token(), live.server.audit, live.state.position.revision
    good, full = os.dup(sink._output._descriptor), os.open("/dev/full", os.O_WRONLY)
    try:
        os.dup2(full, sink._output._descriptor)
        said = (
            "UNAVAILABLE",
            "the audit log cannot be written, so nothing is changed or issued; make room or fix its ",
        )
        create = entry_pb2.BatchCreateEntryRequest(entries=[entry("/other")])
        for call in (
            live.entry.BatchCreateEntry(create, timeout=10),
            live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)), timeout=10),
            live.local.PrepareX509Authority(localauthority_pb2.PrepareX509AuthorityRequest(), timeout=10),
        ):
            code, text = await refusal(call)
            assert (code, text[: len(said[1])]) == said
        assert live.state.position.revision == revision
        stub = (await live.dial()).agent
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await attest(stub, token, KEY)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        (result,) = await sign(agent, wanted(mine, KEY))
        assert result.status.code == 0
    finally:
        os.dup2(good, sink._output._descriptor)
        os.close(good)
        os.close(full)


async def test_a_strict_audit_log_refuses_certificates_it_cannot_record(tmp_path):
    """A16: `audit.strict`."""
    async with live_server(audit={"file": str(tmp_path / "audit.jsonl"), "strict": True}) as live:
        agent = await live.join()
        (mine,) = await live.entries(entry(parent=agent.path))
        sink = live.server.audit
        good, full = os.dup(sink._output._descriptor), os.open("/dev/full", os.O_WRONLY)
        try:
            os.dup2(full, sink._output._descriptor)
            (result,) = await sign(agent, wanted(mine, KEY))
            assert (result.status.code, result.HasField("svid")) == (14, False)
        finally:
            os.dup2(good, sink._output._descriptor)
            os.close(good)
            os.close(full)
        (result,) = await sign(agent, wanted(mine, KEY))
        assert result.status.code == 0


async def test_an_attestation_whose_node_went_away_while_it_was_stored_is_written(live):
    """A16: the agent may stand in the database now; the line says that nobody knows, not nothing."""
    gate = threading.Event()
    token, store = await live.token(), live.server.store
    held = asyncio.ensure_future(store.execute(lambda _: gate.wait(30)))
    try:
        stub = (await live.dial()).agent
        call = stub.AttestAgent(timeout=30)
        await call.write(params(token, KEY))
        async with asyncio.timeout(20):
            while not store._writer._queue.qsize():
                await asyncio.sleep(0.005)
        call.cancel()
        async with asyncio.timeout(20):
            while not (found := await lines(live, "attestation")):
                await asyncio.sleep(0.005)
    finally:
        gate.set()
        await held
    (line,) = found
    assert (line["outcome"], line["attestation_type"]) == ("failed", "join_token")
    assert "interrupted" in line["reason"]
    assert token not in json.dumps(line)
