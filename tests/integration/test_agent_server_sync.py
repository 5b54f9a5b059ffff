"""The agent's half of the sync of entries: pages, differences, and servers that break the rules."""

import pytest

from node_agent.domain.entry_cache import Stamp
from spiffe_core.errors import Unavailable
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as types_entry_pb2
from spiffe_core.wire.convert import entry_to_proto
from tests.builders import make_entry
from tests.doubles.client_of_stubs import client_of


class Paging:
    """The server's side of the protocol over `entries`, with pages of `size`; `whole` sends them at once."""

    def __init__(self, entries, *, size=2, whole=False, extra=()):
        self.entries = {entry.id: entry for entry in entries}
        self.size = size
        self.whole = whole
        self.extra = extra
        self.asked = []
        self.mask = None

    async def SyncAuthorizedEntries(self, requests, context):
        first = await anext(aiter(requests))
        assert not first.ids
        self.mask = first.output_mask
        if self.whole:
            yield entry_pb2.SyncAuthorizedEntriesResponse(entries=self._messages(self.entries))
            return
        ids = sorted(self.entries)
        for start in range(0, len(ids), self.size):
            chunk = ids[start : start + self.size]
            yield entry_pb2.SyncAuthorizedEntriesResponse(
                entry_revisions=[self._revision(one) for one in chunk], more=start + self.size < len(ids)
            )
        async for request in requests:
            self.asked.append(list(request.ids))
            found = [one for one in sorted(request.ids) if one in self.entries]
            while len(found) >= self.size:
                page, found = found[: self.size], found[self.size :]
                yield entry_pb2.SyncAuthorizedEntriesResponse(entries=self._messages(page), more=True)
            yield entry_pb2.SyncAuthorizedEntriesResponse(entries=[*self._messages(found), *self.extra], more=False)

    def _messages(self, ids):
        return [entry_to_proto(self.entries[one]) for one in ids]

    def _revision(self, one):
        entry = self.entries[one]
        return {"id": one, "revision_number": entry.revision_number, "created_at": entry.created_at}


ENTRIES = [make_entry(id=f"e{n}", spiffe_id=f"/w{n}", revision_number=n, created_at=100 + n) for n in range(5)]
KNOWN = {entry.id: Stamp(entry.revision_number, entry.created_at) for entry in ENTRIES}


@pytest.mark.parametrize("whole", [True, False])
async def test_a_first_sync_brings_everything(tmp_path, whole):
    """spire_wire 5.3, both forms."""
    service = Paging(ENTRIES, whole=whole)
    async with client_of(tmp_path, Entry=service) as client:
        listing = await client.sync_entries({})
    assert sorted(listing.entries, key=lambda entry: entry.id) == ENTRIES
    assert listing.present == set(KNOWN)
    assert service.mask.revision_number
    assert not service.mask.dns_names


async def test_a_later_sync_asks_only_for_what_differs(tmp_path):
    service = Paging(ENTRIES)
    known = KNOWN | {"e1": Stamp(0, 101), "gone": Stamp(0, 0)}
    del known["e4"]
    async with client_of(tmp_path, Entry=service) as client:
        listing = await client.sync_entries(known)
    assert service.asked == [["e1", "e4"]]
    assert [entry.id for entry in listing.entries] == ["e1", "e4"]
    assert listing.present == set(KNOWN)


async def test_a_sync_without_news_asks_for_nothing(tmp_path):
    service = Paging(ENTRIES)
    async with client_of(tmp_path, Entry=service) as client:
        listing = await client.sync_entries(KNOWN)
    assert service.asked == []
    assert listing.entries == ()


@pytest.mark.parametrize("whole", [True, False])
async def test_an_agent_without_entries_gets_an_empty_listing(tmp_path, whole):
    class Nothing:
        async def SyncAuthorizedEntries(self, requests, context):
            yield entry_pb2.SyncAuthorizedEntriesResponse()

    async with client_of(tmp_path, Entry=Nothing()) as client:
        listing = await client.sync_entries(KNOWN)
    assert (listing.present, listing.entries) == (frozenset(), ())


async def test_a_stream_that_ends_early_is_an_error_not_an_empty_listing(tmp_path):
    """R41: half an answer must not take identities away."""

    class Short:
        async def SyncAuthorizedEntries(self, requests, context):
            yield entry_pb2.SyncAuthorizedEntriesResponse(entry_revisions=[{"id": "e1"}], more=True)

    async with client_of(tmp_path, Entry=Short()) as client:
        with pytest.raises(Unavailable):
            await client.sync_entries({})


async def test_a_stream_without_any_answer_is_an_error(tmp_path):
    class Silent:
        async def SyncAuthorizedEntries(self, requests, context):
            return
            yield

    async with client_of(tmp_path, Entry=Silent()) as client:
        with pytest.raises(Unavailable):
            await client.sync_entries({})


async def test_entries_nobody_asked_for_are_refused(tmp_path):
    """R41: bounded."""
    flood = [types_entry_pb2.Entry(id=f"x{n}") for n in range(10)]
    async with client_of(tmp_path, Entry=Paging(ENTRIES, extra=flood)) as client:
        with pytest.raises(Unavailable, match="nobody asked for"):
            await client.sync_entries({})


@pytest.mark.parametrize("whole", [True, False])
async def test_one_entry_that_breaks_a_rule_does_not_stop_the_others(tmp_path, whole, caplog):
    """A newer server may know more than this agent; it is said once, and asked for once."""
    service = Paging(ENTRIES, whole=whole)
    good = service._messages

    def spoiled(ids):
        messages = good(ids)
        for message in messages:
            if message.id == "e2":
                message.spiffe_id.path = "no slash"
        return messages

    service._messages = spoiled
    async with client_of(tmp_path, Entry=service) as client:
        listing = await client.sync_entries({})
        again = await client.sync_entries({one: stamp for one, stamp in KNOWN.items() if one != "e2"})
    assert listing.present == again.present == set(KNOWN) - {"e2"}
    assert caplog.text.count("an entry is left out") == 1
    assert len(service.asked) == (0 if whole else 1)
