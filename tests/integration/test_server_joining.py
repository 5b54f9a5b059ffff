"""How a node joins: tokens, what is refused, and the alias it may ask for (spire_wire section 5.1, architecture A18)."""

import asyncio

import grpc
import grpc.aio
import pytest
from cryptography import x509

from identity_server.domain.agents import AGENT_PREFIX
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import Refusal
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from tests.doubles.agent_calls import refusal, refused, sync
from tests.doubles.live_server import attest, entry, failure, live_server, params, spiffe_id


@pytest.fixture
async def live():
    async with live_server(ratelimit={"attestation": False}) as server:  # a failure costs as much as ten
        yield server


async def test_a_node_joins_with_a_token_and_is_known_by_it(live):
    """spire_wire 5.1, 18.2: the agent's ID is made of the token; the SVID is for the CSR's key."""
    token = await live.token()
    agent = await live.join(token)
    assert agent.path == f"{AGENT_PREFIX}/join_token/{token}"
    leaf = x509.load_der_x509_certificate(agent.own.cert_chain[0])
    assert leaf.public_key() == agent.key.public_key()
    shown = await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(agent.path)))
    assert shown.x509svid_serial_number == str(leaf.serial_number)
    assert (shown.attestation_type, shown.banned, shown.can_reattest) == ("join_token", False, False)
    assert shown.x509svid_expires_at == agent.own.expires_at
    assert (await sync(agent)).entries == []


async def test_one_token_used_by_100_keys_at_once_lets_exactly_one_in(live):
    """S26."""
    token = await live.token()
    anonymous = await live.dial()
    keys = [generate(KeyKind.EC_P256) for _ in range(100)]

    async def attempt(key):
        try:
            return await attest(anonymous.agent, token, key)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()

    outcomes = await asyncio.gather(*map(attempt, keys))
    winners = [outcome for outcome in outcomes if not isinstance(outcome, tuple)]
    assert len(winners) == 1
    assert {outcome for outcome in outcomes if isinstance(outcome, tuple)} == {
        ("INVALID_ARGUMENT", "failed to attest: join token does not exist or has already been used")
    }
    leaf = x509.load_der_x509_certificate(winners[0].result.svid.cert_chain[0])
    (agent,) = (await live.agent.ListAgents(agent_pb2.ListAgentsRequest())).agents
    assert agent.x509svid_serial_number == str(leaf.serial_number)


async def test_the_same_key_may_redeem_again_for_five_minutes(live):
    """A18: a lost reply bricks nothing; the repeated reply is a fresh SVID, and the one that counts."""
    token, key = await live.token(), generate(KeyKind.EC_P256)
    first = await live.join(token, key)
    second = await live.join(token, key)
    assert first.own.cert_chain != second.own.cert_chain
    await sync(second)
    assert await refusal(sync(first)) is Refusal.AGENT_NOT_ACTIVE
    live.clock.move(301)
    anonymous = await live.dial()
    code, text = await refused(attest(anonymous.agent, token, key))
    assert (code, text.endswith("already been used")) == ("INVALID_ARGUMENT", True)


async def test_an_expired_token_is_refused(live):
    token = await live.token(ttl=1)
    live.clock.move(2)
    anonymous = await live.dial()
    assert await refused(attest(anonymous.agent, token, generate(KeyKind.EC_P256))) == (
        "INVALID_ARGUMENT",
        "join token expired",
    )


@pytest.mark.parametrize("payload", [b"unknown", b"\xff\xfe", b"..", b"a/b", b"x" * 300])
async def test_what_is_no_token_of_ours_gets_one_answer(live, payload):
    """S35: no oracle, and nothing of it reaches a SPIFFE ID."""
    anonymous = await live.dial()
    code, text = await refused(attest(anonymous.agent, payload, generate(KeyKind.EC_P256)))
    assert (code, text) == (
        "INVALID_ARGUMENT",
        "failed to attest: join token does not exist or has already been used",
    )
    assert (await live.agent.CountAgents(agent_pb2.CountAgentsRequest())).count == 0


async def test_a_requested_id_becomes_an_alias_entry_in_the_redeeming_transaction(live):
    """A18, spire_features 18.2: {parent = agent, selector spiffe_id:<agent>}; entries below it are the agent's."""
    token = await live.token(agent_id=spiffe_id("/node/one"))
    count = entry_pb2.CountEntriesRequest()
    assert (await live.entry.CountEntries(count)).count == 0
    (below,) = await live.entries(entry("/web", parent="/node/one"))
    key = generate(KeyKind.EC_P256)
    agent = await live.join(token, key)
    entries = {item.spiffe_id.path: item for item in (await sync(agent)).entries}
    assert set(entries) == {"/node/one", "/web"}
    alias = entries["/node/one"]
    assert alias.parent_id.path == agent.path
    assert [(one.type, one.value) for one in alias.selectors] == [("spiffe_id", f"spiffe://example.org{agent.path}")]
    assert entries["/web"].id == below
    await live.join(token, key)  # a repeat does not make it twice
    assert (await live.entry.CountEntries(count)).count == 2


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (agent_pb2.AttestAgentRequest(), "malformed param: missing params"),
        (agent_pb2.AttestAgentRequest(challenge_response=b"x"), "malformed param: missing params"),
        (agent_pb2.AttestAgentRequest(params={}), "malformed param: missing attestation data"),
        (
            agent_pb2.AttestAgentRequest(params={"data": {"type": "join_token", "payload": b"x"}}),
            "malformed param: missing X509-SVID parameters",
        ),
        (
            agent_pb2.AttestAgentRequest(params={"data": {"payload": b"x"}, "params": {"csr": b"x"}}),
            "malformed param: missing attestation data type",
        ),
        (
            agent_pb2.AttestAgentRequest(params={"data": {"type": "join_token"}, "params": {"csr": b"x"}}),
            "malformed param: missing attestation data payload",
        ),
        (
            agent_pb2.AttestAgentRequest(params={"data": {"type": "join_token", "payload": b"x"}, "params": {}}),
            "malformed param: missing CSR",
        ),
        (
            agent_pb2.AttestAgentRequest(
                params={"data": {"type": "join_token", "payload": b"x"}, "params": {"csr": b"no"}}
            ),
            "malformed param: csr: is not a PKCS#10 request in DER",
        ),
    ],
)
async def test_every_missing_field_is_named(live, request_, words):
    """spire_wire 5.1, N-C-01, N-C-02, S24."""
    anonymous = await live.dial()
    call = anonymous.agent.AttestAgent(timeout=10)
    await call.write(request_)
    error = await failure(call)
    assert (error.code().name, error.details()) == ("INVALID_ARGUMENT", words)


async def test_an_unknown_attestor_is_a_failed_precondition(live):
    """S24: default deny."""
    anonymous = await live.dial()
    code, text = await refused(attest(anonymous.agent, "t", generate(KeyKind.EC_P256), "aws_iid"))
    assert code == "FAILED_PRECONDITION"
    assert 'could not find node attestor type "aws_iid"' in text


async def test_a_csr_without_proof_of_the_key_is_refused_and_the_token_stays_good(live):
    """N-C-03, A4: SPIRE does not check; we do."""
    token = await live.token()
    broken = bytearray(build_csr(generate(KeyKind.EC_P256), spiffe_id=None))
    broken[-1] ^= 1
    anonymous = await live.dial()
    request = params(token, generate(KeyKind.EC_P256))
    request.params.params.csr = bytes(broken)
    call = anonymous.agent.AttestAgent(timeout=10)
    await call.write(request)
    error = await failure(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    await live.join(token)


async def test_a_stream_that_ends_before_anything_was_sent_is_an_error_of_the_client(live):
    anonymous = await live.dial()
    call = anonymous.agent.AttestAgent(timeout=10)
    await call.done_writing()
    assert (await failure(call)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_attestation_needs_no_certificate_and_is_open_on_both_listeners(live):
    token = await live.token()
    response = await attest(live.agent, token, generate(KeyKind.EC_P256))
    assert response.result.svid.id.path.endswith(token)
