"""SyncAuthorizedEntries and GetAuthorizedEntries: an agent's entries out of the state's finished bytes.

The protocol (spire_wire section 5.3):

1. The first request carries no ids. Its mask holds for the whole stream and, if given, includes `revision_number`.
2. An agent with at most 500 entries gets them in one response, and the stream ends.
3. Otherwise it gets {id, revision_number, created_at} of all of them, 500 a response, `more` on all but the last.
4. Each further request names ids and gets full pages of 500 entries with `more`, then exactly one response without
   it, possibly empty, in id order. Unknown and unauthorised ids are left out without a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from identity_server.domain.entry_record import EntryRecord
from spiffe_core.errors import InvalidRequest
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire.entry_bytes import sized, tags

PAGE = 500
SLICE = 250
"""So many entries are decoded and masked before other calls get their turn: about 2 ms."""

MAX_KEPT_BYTES = 16 * 1024 * 1024
"""Of pages of revisions: some 350,000 entries' worth, whoever's they are."""

Response = entry_pb2.SyncAuthorizedEntriesResponse
_ALL = tags(entry_pb2.GetAuthorizedEntriesResponse)
_SYNC = tags(Response)
_MORE = Response(more=True).SerializeToString()
Entries = Mapping[str, EntryRecord]


class RevisionPages:
    """Finished pages of revisions, each kept for as long as an agent's set of entries is the same object.

    A state gives the same object until something in it changes, so a steady poll costs no more than its bytes.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Entries, tuple[bytes, ...]]] = {}
        self._bytes = 0

    def of(self, entries: Entries) -> tuple[bytes, ...] | None:
        """The pages of this very set; None if they are not kept."""
        kept = self._kept.get(id(entries))
        return kept[1] if kept is not None and kept[0] is entries else None

    def keep(self, entries: Entries, pages: Sequence[bytes]) -> None:
        """Keep the pages; all others are forgotten when there is no room."""
        size = sum(map(len, pages))
        if self._bytes + size > MAX_KEPT_BYTES:
            self._kept.clear()
            self._bytes = 0
        if size <= MAX_KEPT_BYTES and id(entries) not in self._kept:
            self._kept[id(entries)] = (entries, tuple(pages))
            self._bytes += size


class Rendering:
    """Turns records into the bytes of messages under one mask.

    A message for each of 100,000 entries at once is 150 MB; whole entries are finished bytes already.
    """

    def __init__(self, mask: entry_types.EntryMask | None) -> None:
        every = entry_types.EntryMask.DESCRIPTOR.fields
        self._hidden = () if mask is None else tuple(bit.name for bit in every if not getattr(mask, bit.name))

    def one(self, record: EntryRecord) -> bytes:
        """One entry with the fields asked for; its id is always there."""
        if not self._hidden:
            return record.wire
        message = entry_types.Entry.FromString(record.wire)
        for name in self._hidden:
            message.ClearField(name)
        return message.SerializeToString(deterministic=True)

    async def field(self, tag: bytes, records: Sequence[EntryRecord]) -> bytes:
        """Many of them as a repeated field of a response, giving way to others now and then."""
        made: list[bytes] = []
        for start in range(0, len(records), SLICE):
            if start:
                await asyncio.sleep(0)
            made.append(b"".join([sized(tag, self.one(record)) for record in records[start : start + SLICE]]))
        return b"".join(made)


async def all_entries(entries: Entries, mask: entry_types.EntryMask | None) -> bytes:
    """Everything in one response, in no particular order."""
    return await Rendering(mask).field(_ALL["entries"], list(entries.values()))


async def synchronise(
    requests: AsyncIterator[entry_pb2.SyncAuthorizedEntriesRequest],
    authorised: Callable[[], Entries],
    pages: RevisionPages,
) -> AsyncIterator[bytes]:
    """Run the protocol. `authorised` answers by the latest state each time it is asked."""
    messages = aiter(requests)
    first = await anext(messages, None)
    if first is None:
        return
    if first.ids:
        raise InvalidRequest("specifying IDs on initial request is not supported", field="ids")
    mask = convert.mask_of(first, "output_mask", entry_types.EntryMask)
    if mask is not None and not mask.revision_number:
        raise InvalidRequest("revision number cannot be masked", field="output_mask.revision_number")
    rendering = Rendering(mask)
    entries = authorised()
    if len(entries) <= PAGE:
        yield await rendering.field(_SYNC["entries"], list(entries.values()))
        return
    async for page in _revisions(entries, pages):
        yield page
    async for request in messages:
        async for full in _requested(request.ids, authorised(), rendering):
            yield full


async def _revisions(entries: Entries, pages: RevisionPages) -> AsyncIterator[bytes]:
    kept = pages.of(entries)
    if kept is not None:
        for finished in kept:
            yield finished
        return
    made: list[bytes] = []
    ids = sorted(entries)
    for start in range(0, len(ids), PAGE):
        page = Response(more=start + PAGE < len(ids))
        for entry_id in ids[start : start + PAGE]:
            record = entries[entry_id]
            page.entry_revisions.add(id=record.id, revision_number=record.revision_number, created_at=record.created_at)
        made.append(page.SerializeToString())
        yield made[-1]
        await asyncio.sleep(0)
    pages.keep(entries, made)


async def _requested(ids: Sequence[str], entries: Entries, rendering: Rendering) -> AsyncIterator[bytes]:
    """Full pages with `more` as long as a further entry remains to be looked at, then one page without."""
    named = {record.id: record for record in map(entries.get, ids) if record is not None}
    found = [named[entry_id] for entry_id in sorted(named)]
    del named  # of 100,000 ids it is 10 MB, and this goes on as long as the agent takes
    last = len(found) - len(found) % PAGE
    for start in range(0, last, PAGE):
        yield await rendering.field(_SYNC["entries"], found[start : start + PAGE]) + _MORE
    yield await rendering.field(_SYNC["entries"], found[last:])
