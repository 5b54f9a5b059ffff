"""S36 over the wire: what a request may hold is exact, in the calls and in the transport (values: unit/test_limits.py).

Each case makes a request of so many: up to the limit it is served, or refused for something else; one more is refused
for the number, in words that name it.
"""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from tests.doubles.live_server import failure, live_server, params, spiffe_id, wanted

KEY = generate(KeyKind.EC_P256)
MIB = 1024 * 1024
KEYED = {"audience": ["a"], "ttl": 60}
REQUEST_BYTES = 65_536
"""The least that `limits.request_bytes` can be set to."""


@pytest.fixture
async def live():
    async with live_server(limits={"request_bytes": REQUEST_BYTES}) as server:
        yield server


@pytest.fixture
async def roomy():
    async with live_server(wit={"enabled": True}, ratelimit={"signing": False}) as server:
        yield server


async def said(call):
    """(code, text) that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def listed(live, **wanted_):
    return live.entry.ListEntries(entry_pb2.ListEntriesRequest(filter=wanted_), timeout=20)


def agents(live, **wanted_):
    return live.agent.CountAgents(agent_pb2.CountAgentsRequest(filter=wanted_), timeout=20)


def selectors(count):
    return {"selectors": [{"type": "t", "value": str(number)} for number in range(count)]}


def domains(count):
    return {"trust_domains": [f"d{number}.test" for number in range(count)]}


def minted(live, **over):
    request = svid_pb2.MintJWTSVIDRequest(id=spiffe_id("/ci"), **{**KEYED, **over})
    return live.svid.MintJWTSVID(request, timeout=20)


CALLS = {
    "selectors of a filter": (1000, lambda live, n: listed(live, by_selectors=selectors(n))),
    "selectors of a filter of agents": (1000, lambda live, n: agents(live, by_selector_match=selectors(n))),
    "trust domains of a filter": (1000, lambda live, n: listed(live, by_federates_with=domains(n))),
    "hint of a filter": (2048, lambda live, n: listed(live, by_hint={"value": "h" * n})),
    "hint of a filter, wide": (
        2048,
        lambda live, n: listed(live, by_hint={"value": "é" * (n // 2) + "x" * (n % 2)}),
    ),
    "type of a filter of agents": (2048, lambda live, n: agents(live, by_attestation_type="t" * n)),
    "audiences of a token": (32, lambda live, n: minted(live, audience=[f"a{k}" for k in range(n)])),
    "bytes of an audience": (1024, lambda live, n: minted(live, audience=["a" * n])),
    "bytes of a join token": (
        256,
        lambda live, n: live.agent.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=60, token="t" * n)),
    ),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_limit_of_a_call_is_exact(roomy, name):
    """S36: n - 1 and n are served, n + 1 is an invalid argument that says how many are allowed."""
    limit, call = CALLS[name]
    for count in (limit - 1, limit):
        assert await said(call(roomy, count)) == ("OK", "")
    code, text = await said(call(roomy, limit + 1))
    assert code == "INVALID_ARGUMENT"
    assert str(limit) in text


async def test_a_batch_of_requests_is_counted_exactly(roomy):
    """S36, N-C-18: none, one below, the limit, and one more, of both kinds that come in batches."""
    agent = await roomy.join()
    for count, code in ((0, "INVALID_ARGUMENT"), (499, "OK"), (500, "OK"), (501, "RESOURCE_EXHAUSTED")):
        items = [wanted("none", csr=b"x")] * count
        x509 = agent.svid.BatchNewX509SVID(svid_pb2.BatchNewX509SVIDRequest(params=items), timeout=20)
        wits = [svid_pb2.NewWITSVIDParams(entry_id="none")] * count
        wit = agent.svid.BatchNewWITSVID(svid_pb2.BatchNewWITSVIDRequest(params=wits), timeout=20)
        for call in (x509, wit):
            found, text = await said(call)
            assert found == code, text
            assert ("burst size (500)" in text) is (count > 500)
            if code == "OK":
                assert len((await call).results) == count


@pytest.mark.parametrize(("size", "looked_at"), [(MIB - 1, True), (MIB, True), (MIB + 1, False)])
async def test_what_a_node_sends_is_counted_exactly(roomy, size, looked_at):
    """S36: evidence of a mebibyte is looked at, and is no token; one byte more is not."""
    call = (await roomy.dial()).agent.AttestAgent(timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.write(params(b"/" * size, KEY))
        assert await call.read() is grpc.aio.EOF
        raise await failure(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (f"payload has more than {MIB} bytes" in caught.value.details()) is not looked_at


def padded(size):
    """A message of so many bytes: one field that nobody knows, with a length of three bytes."""
    length = size - 5
    return bytes((0xC2, 0x3E, length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14)) + bytes(length)


async def test_a_request_is_counted_exactly_in_bytes(live):
    """S36, `limits.request_bytes`: a message of the limit is served, one byte more is refused unread; others go on."""
    for size, code in ((REQUEST_BYTES - 1, "OK"), (REQUEST_BYTES, "OK"), (REQUEST_BYTES + 1, "RESOURCE_EXHAUSTED")):
        assert len(padded(size)) == size
        call = live.channel.unary_unary("/spire.api.server.entry.v1.Entry/CountEntries")(padded(size), timeout=20)
        assert (await said(call))[0] == code, size
    assert await said(listed(live)) == ("OK", "")
