"""Messages that are hostile by their size, depth or spelling, in every method and every field (S30, S31, S58, S59)."""

from __future__ import annotations

import time

import grpc
import grpc.aio
import pytest

from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2
from tests.doubles.live_server import entry, live_server, spiffe_id
from tests.integration.test_server_access import METHODS, STREAMS

MIB = 1024 * 1024


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


async def code_of(channel, method, payload):
    """The status name a raw request ends with; OK if it does not fail."""
    try:
        if method.rsplit("/", 1)[1] in STREAMS:
            async for _ in channel.stream_stream(method)(iter([payload]), timeout=20):
                pass
        else:
            await channel.unary_unary(method)(payload, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def unknown_fields(count):
    """Field 1000, a varint of one byte, again and again."""
    return b"\xc0\x3e\x01" * count


DEEP = b"\x0b" * 10_000 + b"\x0c" * 10_000
UNREADABLE = {
    "groups nested 10,000 deep": DEEP,
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\x07",
    "a bad tag": b"\x07",
}


@pytest.mark.parametrize("what", UNREADABLE)
async def test_what_cannot_be_parsed_is_refused_by_every_method_and_harms_nobody(live, what):
    """S59: no stack is exhausted, no handler runs, and the connection goes on."""
    for method in METHODS:
        code = await code_of(live.channel, method, UNREADABLE[what])
        assert code in {"INTERNAL", "INVALID_ARGUMENT", "PERMISSION_DENIED"}, (method, code)
    assert await code_of(live.channel, "/spire.api.server.entry.v1.Entry/CountEntries", b"") == "OK"


async def test_a_message_of_64_mib_is_refused_by_its_size(live):
    """S59: before anything of it is parsed, for strangers as for administrators."""
    stranger = (await live.dial()).dialer.channel()
    for channel, method in (
        (live.channel, "/spire.api.server.entry.v1.Entry/BatchCreateEntry"),
        (stranger, "/spire.api.server.bundle.v1.Bundle/GetBundle"),
        (stranger, "/spire.api.server.agent.v1.Agent/AttestAgent"),
    ):
        assert await code_of(channel, method, bytes(64 * MIB)) in {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}, method
    assert await code_of(live.channel, "/spire.api.server.entry.v1.Entry/CountEntries", b"") == "OK"


async def test_a_million_unknown_fields_cost_little(live):
    """S59: as many as fit into a message are passed over."""
    start = time.process_time()
    payload = unknown_fields(MIB)
    assert await code_of(live.channel, "/spire.api.server.entry.v1.Entry/CountEntries", payload) == "OK"
    assert time.process_time() - start < 5


BAD_PATHS = [
    "/..", "/.", "/a/../b", "//", "/a//b", "/a/", "/", "/%2e%2e", "/a%2fb", "/a b", "/\u00e9", "/a\x00b", "/a?b", "/a#b",
    "/a@b", "a", "/" + "x" * 2048,
]  # fmt: skip
BAD_DOMAINS = [
    "Example.org", "example.org:80", "user@example.org", "example.org/", "ex\u0430mple.org", "", "x" * 256, "other.org",
    "spiffe:/example.org", "example.org.", "example%2eorg",
]  # fmt: skip
BAD_IDS = [spiffe_id(path) for path in BAD_PATHS] + [spiffe_id("/web", name) for name in BAD_DOMAINS]


def askers(live):
    """Every call that takes a SPIFFE ID of our own trust domain, as a function of the ID."""
    mint = {"ttl": 60, "audience": ["a"]}
    create = entry_pb2.BatchCreateEntryRequest
    update = entry_pb2.BatchUpdateEntryRequest
    return {
        "entry's ID": lambda bad: live.entry.BatchCreateEntry(create(entries=[{**entry(), "spiffe_id": bad}])),
        "entry's parent": lambda bad: live.entry.BatchCreateEntry(create(entries=[{**entry(), "parent_id": bad}])),
        "updated ID": lambda bad: live.entry.BatchUpdateEntry(update(entries=[{**entry(id="e"), "spiffe_id": bad}])),
        "filter by ID": lambda bad: live.entry.ListEntries(
            entry_pb2.ListEntriesRequest(filter={"by_spiffe_id": bad})
        ),
        "filter by parent": lambda bad: live.entry.CountEntries(
            entry_pb2.CountEntriesRequest(filter={"by_parent_id": bad})
        ),
        "agent to show": lambda bad: live.agent.GetAgent(agent_pb2.GetAgentRequest(id=bad)),
        "agent to ban": lambda bad: live.agent.BanAgent(agent_pb2.BanAgentRequest(id=bad)),
        "agent to evict": lambda bad: live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=bad)),
        "alias of a token": lambda bad: live.agent.CreateJoinToken(
            agent_pb2.CreateJoinTokenRequest(ttl=60, agent_id=bad)
        ),
        "minted JWT": lambda bad: live.svid.MintJWTSVID(svid_pb2.MintJWTSVIDRequest(id=bad, **mint)),
    }  # fmt: skip


async def verdict(call):
    """The status of a call, or of the one item of its batch."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    (code,) = (result.status.code for result in getattr(answer, "results", ()))
    return {3: "INVALID_ARGUMENT"}.get(code, str(code))


async def test_a_malformed_or_foreign_id_is_refused_in_every_field_that_takes_one(live):
    """S30, S31: never normalised, never decoded, never cut; nothing is stored, minted or found."""
    await live.entries(entry(id="e"))
    for name, ask in askers(live).items():
        for bad in BAD_IDS:
            assert await verdict(ask(bad)) in {"INVALID_ARGUMENT", "NOT_FOUND"}, (name, bad)
    assert list(live.state.entries) == ["e"]
    assert not live.state.agents


PAGED = {
    "entry": (entry_pb2.ListEntriesRequest, "ListEntries"),
    "agent": (agent_pb2.ListAgentsRequest, "ListAgents"),
    "bundle": (bundle_pb2.ListFederatedBundlesRequest, "ListFederatedBundles"),
    "trust_domain": (trustdomain_pb2.ListFederationRelationshipsRequest, "ListFederationRelationships"),
}


@pytest.mark.parametrize("service", PAGED)
async def test_every_list_is_bounded_and_its_tokens_are_its_own(live, service):
    """S58: any page size up to 2**31 - 1 costs nothing; below zero, and tokens of anything else, are refused."""
    request, name = PAGED[service]
    ask = getattr(getattr(live, service), name)
    await live.entries(entry("/a"), entry("/b"))
    foreign = (await live.entry.ListEntries(entry_pb2.ListEntriesRequest(page_size=1))).next_page_token
    await ask(request(page_size=2**31 - 1), timeout=10)
    for wrong in ({"page_size": -1}, {"page_size": 1, "page_token": "junk"}, {"page_size": 1, "page_token": "x" * MIB}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(request(**wrong), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, wrong
    if service != "entry":
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(request(page_size=1, page_token=foreign), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
