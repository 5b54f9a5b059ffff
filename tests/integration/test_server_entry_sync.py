"""How an agent learns its entries: GetAuthorizedEntries and SyncAuthorizedEntries, small and large (spire_wire section 5.3)."""

import grpc
import grpc.aio
import pytest

from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from tests.doubles.live_server import entry, failure, live_server


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


async def dialogue(agent, *requests):
    """Write all requests, half-close, read all responses."""
    call = agent.entry.SyncAuthorizedEntries(timeout=30)
    for request in requests:
        await call.write(entry_pb2.SyncAuthorizedEntriesRequest(**request))
    await call.done_writing()
    return [response async for response in call]


async def test_a_small_agent_gets_everything_in_one_response(live):
    """spire_wire 5.3 step 2; an agent without entries gets one response with both lists empty."""
    agent = await live.join()
    (empty,) = await dialogue(agent, {})
    assert (list(empty.entries), list(empty.entry_revisions), empty.more) == ([], [], False)
    ids = await live.entries(*(entry(f"/w{number}", agent.path) for number in range(500)))
    (response,) = await dialogue(agent, {"output_mask": {"spiffe_id": True, "revision_number": True}})
    assert {item.id for item in response.entries} == set(ids)
    assert not response.more
    assert {len(item.selectors) for item in response.entries} == {0}
    assert all(item.spiffe_id.path for item in response.entries)


async def test_a_large_agent_gets_revisions_and_asks_for_what_it_lacks(live):
    """spire_wire 5.3 steps 3 and 4, 12.5."""
    agent = await live.join()
    ids = await live.entries(*(entry(f"/w{number}", agent.path) for number in range(1201)))
    (foreign,) = await live.entries(entry("/elsewhere", "/spire/agent/join_token/other"))
    call = agent.entry.SyncAuthorizedEntries(timeout=30)
    await call.write(entry_pb2.SyncAuthorizedEntriesRequest(output_mask={"revision_number": True, "hint": True}))
    pages = [await call.read() for _ in range(3)]
    assert [len(page.entry_revisions) for page in pages] == [500, 500, 201]
    assert [page.more for page in pages] == [True, True, False]
    told = [item for page in pages for item in page.entry_revisions]
    assert {item.id for item in told} == set(ids)
    assert {item.revision_number for item in told} == {0}
    assert all(item.created_at for item in told)

    async def ask(*wanted):
        await call.write(entry_pb2.SyncAuthorizedEntriesRequest(ids=wanted, output_mask={"spiffe_id": True}))
        got = []
        while True:
            page = await call.read()
            got.append(page)
            if not page.more:
                return got

    (page,) = await ask(ids[7], "unknown", foreign)
    assert [item.id for item in page.entries] == [ids[7]]
    assert not page.entries[0].HasField("spiffe_id")  # the first request's mask holds
    pages = await ask(*ids)
    assert [len(page.entries) for page in pages] == [500, 500, 201]
    assert [item.id for page in pages for item in page.entries] == sorted(ids)
    pages = await ask(*ids[:500])
    assert [(len(page.entries), page.more) for page in pages] == [(500, True), (0, False)]
    (page,) = await ask()
    assert list(page.entries) == []
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"ids": ["a"]}, "specifying IDs on initial request is not supported"),
        ({"output_mask": {"spiffe_id": True}}, "revision number cannot be masked"),
    ],
)
async def test_a_wrong_first_request_is_refused(live, request_, words):
    agent = await live.join()
    call = agent.entry.SyncAuthorizedEntries(timeout=10)
    await call.write(entry_pb2.SyncAuthorizedEntriesRequest(**request_))
    error = await failure(call)
    assert (error.code().name, error.details()) == ("INVALID_ARGUMENT", words)


async def test_children_of_children_belong_to_the_agent(live):
    """spire_features 15.2: also through an alias whose selectors are all among the node's."""
    agent = await live.join()
    ids = await live.entries(
        entry("/node", agent.path), entry("/web", "/node"), entry("/deep", "/web"), entry("/other", "/elsewhere")
    )
    got = await agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest())
    assert {item.id for item in got.entries} == set(ids[:3])


async def test_two_agents_see_only_their_own(live):
    """S21."""
    one, two = await live.join(), await live.join()
    (first,) = await live.entries(entry("/a", one.path))
    (second,) = await live.entries(entry("/b", two.path))
    for agent, own in ((one, first), (two, second)):
        got = await agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest())
        assert [item.id for item in got.entries] == [own]
