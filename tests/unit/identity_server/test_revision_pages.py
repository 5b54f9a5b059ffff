"""Pages of revisions are kept as long as they are true, and in bounded memory (S58; spire_wire section 5.3)."""

import pytest

from identity_server.domain.entry_record import EntryRecord
from identity_server.rpc import entry_sync
from identity_server.rpc.entry_sync import RevisionPages, synchronise
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2

Page = entry_pb2.SyncAuthorizedEntriesResponse


def entries(count=1200, revision=0):
    return {f"e{n:05}": EntryRecord(f"e{n:05}", b"", f"/w/{n}", "/p", revision, 7) for n in range(count)}


async def polled(of, pages):
    async def requests():
        yield entry_pb2.SyncAuthorizedEntriesRequest()

    return [page async for page in synchronise(requests(), lambda: of, pages)]


async def test_an_unchanged_set_gets_the_very_same_pages():
    pages, mine = RevisionPages(), entries()
    first = await polled(mine, pages)
    again = await polled(mine, pages)
    assert all(one is other for one, other in zip(first, again, strict=True))
    read = [Page.FromString(one) for one in again]
    assert [page.more for page in read] == [True, True, False]
    assert [one.id for page in read for one in page.entry_revisions] == sorted(mine)


async def test_a_changed_set_gets_its_own_revisions():
    pages = RevisionPages()
    await polled(entries(), pages)
    changed = await polled(entries(revision=1), pages)
    assert {one.revision_number for data in changed for one in Page.FromString(data).entry_revisions} == {1}


@pytest.mark.parametrize("room", [0, 50_000])
async def test_what_is_kept_is_bounded(monkeypatch, room):
    monkeypatch.setattr(entry_sync, "MAX_KEPT_BYTES", room)
    pages, sets = RevisionPages(), [entries() for _ in range(5)]
    for one in sets:
        assert len(await polled(one, pages)) == 3
    kept = [pages.of(one) for one in sets if pages.of(one) is not None]
    assert sum(len(page) for found in kept for page in found) <= room
    assert bool(kept) is bool(room)
