"""S22: what an output mask lets through is what stands in the unmasked answer, in every call that shows agents or entries.

Bundles and relationships: test_server_bundles.py and test_server_federation.py.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import agent_pb2 as agent_types
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from tests.doubles.live_server import entry, live_server, spiffe_id

ALWAYS = {agent_types.AgentMask: {"id"}, entry_types.EntryMask: {"id"}}


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


def masks(kind):
    """No field, each alone, every two neighbours, and all of them: as names, with the mask."""
    names = [bit.name for bit in kind.DESCRIPTOR.fields]
    for some in ((), *((name,) for name in names), *pairwise(names), tuple(names)):
        yield set(some), kind(**dict.fromkeys(some, True))


def expected(whole, kind, flagged):
    """The unmasked message without what the mask leaves out."""
    left = type(whole)()
    left.CopyFrom(whole)
    for bit in whole.DESCRIPTOR.fields:
        if bit.name not in flagged | ALWAYS[kind]:
            left.ClearField(bit.name)
    return left


def empty(message):
    """The fields that would pass under any mask, because they hold nothing."""
    return {bit.name for bit in message.DESCRIPTOR.fields} - {bit.name for bit, _ in message.ListFields()}


FULL = {
    "x509_svid_ttl": 9,
    "jwt_svid_ttl": 8,
    "federates_with": ["fed.test"],
    "admin": True,
    "downstream": True,
    "expires_at": 2**33,
    "dns_names": ["a.example"],
    "hint": "h",
    "store_svid": True,
    "additional_attributes": {"jwt_svid_include_jti": True},
}
"""Nothing is at its default."""


async def full_entry(live, parent):
    """An entry without anything at its default; whole, as an administrator sees it."""
    bundle = {"trust_domain": "fed.test"}
    await live.bundle.BatchCreateFederatedBundle(bundle_pb2.BatchCreateFederatedBundleRequest(bundle=[bundle]))
    (entry_id,) = await live.entries(entry("/web", parent, **FULL))
    await live.entry.BatchUpdateEntry(
        entry_pb2.BatchUpdateEntryRequest(entries=[{"id": entry_id, "hint": "i"}], input_mask={"hint": True})
    )
    whole = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=entry_id))
    assert not empty(whole)
    return whole


async def test_whatever_shows_agents_shows_the_fields_of_the_mask_as_they_are(live):
    """S22: GetAgent and ListAgents, of an agent that is banned as of one that is not."""
    agents = [await live.join(), await live.join()]
    for agent in agents:
        await agent.agent.PostStatus(agent_pb2.PostStatusRequest(agent_version="1.15.3"))
    await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agents[1].path)))
    for agent, lacking in zip(agents, ({"banned"}, {"x509svid_serial_number"}), strict=True):
        who = spiffe_id(agent.path)
        whole = await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=who))
        assert empty(whole) <= lacking | {"selectors", "can_reattest"}, "what is compared is there"
        for flagged, mask in masks(agent_types.AgentMask):
            wanted = expected(whole, agent_types.AgentMask, flagged)
            assert await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=who, output_mask=mask)) == wanted, flagged
            listed = (await live.agent.ListAgents(agent_pb2.ListAgentsRequest(output_mask=mask))).agents
            assert [one for one in listed if one.id.path == agent.path] == [wanted], flagged


async def test_whatever_shows_entries_shows_the_fields_of_the_mask_as_they_are(live):
    """S22: to administrators one by one and as a list, and to the agent both ways; SPIRE #6636 was in one call alone."""
    agent = await live.join()
    whole = await full_entry(live, agent.path)
    for flagged, mask in masks(entry_types.EntryMask):
        wanted = expected(whole, entry_types.EntryMask, flagged)
        one = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=whole.id, output_mask=mask))
        some = await live.entry.ListEntries(entry_pb2.ListEntriesRequest(output_mask=mask))
        own = await agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(output_mask=mask))
        assert [one, [each for each in some.entries if each.id == whole.id], list(own.entries)] == [
            wanted,
            [wanted],
            [wanted],
        ], flagged
        if "revision_number" not in flagged:
            continue  # the dialogue needs it, and says so
        call = agent.entry.SyncAuthorizedEntries(timeout=30)
        await call.write(entry_pb2.SyncAuthorizedEntriesRequest(output_mask=mask))
        await call.done_writing()
        assert [list(answer.entries) async for answer in call] == [[wanted]], flagged


async def test_a_write_answers_with_the_fields_of_the_mask_as_they_are(live):
    """S22: BatchCreateEntry and BatchUpdateEntry; what a mask hides is written all the same."""
    agent = await live.join()
    whole = await full_entry(live, agent.path)
    for number, (flagged, mask) in enumerate(masks(entry_types.EntryMask)):
        request = entry_pb2.BatchCreateEntryRequest(entries=[entry(f"/w{number}", **FULL)], output_mask=mask)
        made = (await live.entry.BatchCreateEntry(request)).results[0].entry
        stored = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=made.id))
        assert made == expected(stored, entry_types.EntryMask, flagged), flagged
        assert empty(stored) == {"revision_number"}, "the mask is for the answer"
        change = entry_pb2.BatchUpdateEntryRequest(
            entries=[{"id": whole.id, "hint": f"i{number}"}], input_mask={"hint": True}, output_mask=mask
        )
        changed = (await live.entry.BatchUpdateEntry(change)).results[0].entry
        stored = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=whole.id))
        assert changed == expected(stored, entry_types.EntryMask, flagged), flagged
        assert (stored.hint, stored.x509_svid_ttl) == (f"i{number}", 9)
