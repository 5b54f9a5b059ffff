"""Batches of 500 entries with similar ones among them, alone and at the same moment, on every database (B9, S27)."""

import asyncio
from dataclasses import replace

import pytest

from identity_server.domain.access import Caller, CallerKind
from identity_server.services.registration import Change, Registration
from spiffe_core.entry import RegistrationEntry, similarity
from spiffe_core.errors import Conflict
from tests.builders import make_entry
from tests.databases import SHARED_KINDS, running_store, url_of
from tests.doubles.authority_rig import Silent
from tests.doubles.clock import FakeClock
from tests.doubles.held_follower import seen

BATCH = 500
ADMIN = Caller(CallerKind.LOCAL, "test")


def registration(store):
    return Registration(store=store, clock=FakeClock(), audit=Silent())


def batch(prefix, count=BATCH):
    """Entries that are similar to those of any other prefix, with ids of their own."""
    return [make_entry(id=f"{prefix}-{number}", spiffe_id=f"/{number}") for number in range(count)]


async def stored(store):
    return {one.id: one for one in await store.read(lambda uow: list(uow.entries.all()))}


async def test_a_batch_of_500_stores_what_is_new_and_names_what_stands(store):
    """Similar to a stored entry, to an earlier one of the batch, or with a taken id: each item has its own answer."""
    keep = registration(store)
    standing = batch("old", 3)
    assert await keep.create(ADMIN, standing) == [replace(one, created_at=one_at(keep)) for one in standing]
    wanted = batch("new")
    wanted[100] = replace(wanted[99], id="twin")
    wanted[200] = replace(wanted[200], id="old-0")
    outcomes = await keep.create(ADMIN, wanted)
    refused = {number: one for number, one in enumerate(outcomes) if not isinstance(one, RegistrationEntry)}
    assert refused.keys() == {0, 1, 2, 100, 200}
    assert all(isinstance(one, Conflict) for one in refused.values())
    assert [refused[number].existing.id for number in (0, 1, 2, 100, 200)] == [
        "old-0",
        "old-1",
        "old-2",
        "new-99",
        "old-0",
    ]
    assert len(await stored(store)) == len(store.state.value.entries) == 3 + BATCH - 5
    assert set(await stored(store)) == set(store.state.value.entries)


def one_at(keep):
    return int(keep._clock.now().timestamp())


async def test_two_entries_that_change_places_in_one_batch_never_break_the_rule(store):
    """A similar entry is judged by what is stored: neither takes the other's place, and both are told who stands there."""
    keep = registration(store)
    one, two = batch("e", 2)
    await keep.create(ADMIN, [one, two])

    def places(other):
        return lambda before: replace(before, spiffe_id=other.spiffe_id)

    outcomes = await keep.update(ADMIN, [Change("e-0", places(two)), Change("e-1", places(one))])
    assert [type(outcome) for outcome in outcomes] == [Conflict, Conflict]
    found = await stored(store)
    assert {found["e-0"].spiffe_id.path, found["e-1"].spiffe_id.path} == {"/0", "/1"}
    assert {entry.revision_number for entry in found.values()} == {0}


async def test_the_same_500_created_by_eight_callers_at_once_exist_once(store):
    """One transaction may hold several of these batches: the later ones see the earlier."""
    keep = registration(store)
    outcomes = await asyncio.gather(*(keep.create(ADMIN, batch(f"c{number}")) for number in range(8)))
    exactly_once(outcomes, await stored(store))


@pytest.mark.parametrize("kind", SHARED_KINDS)
async def test_the_same_500_created_on_three_servers_at_once_exist_once(kind, tmp_path):
    """The unique column decides; nobody gets an internal error, and every refusal names the entry that stands."""
    url = url_of(kind, tmp_path)
    async with (
        running_store(url, server_id="one") as one,
        running_store(url, server_id="two") as two,
        running_store(url, server_id="three") as three,
    ):
        stores = (one, two, three)
        outcomes = await asyncio.gather(
            *(
                registration(store).create(ADMIN, batch(f"s{number}c{caller}"))
                for number, store in enumerate(stores)
                for caller in range(2)
            )
        )
        found = await stored(one)
        exactly_once(outcomes, found)
        for store in stores:
            await seen(store, lambda state: set(state.entries) == set(found))


def exactly_once(outcomes, found):
    assert len(found) == BATCH
    assert len({similarity(entry) for entry in found.values()}) == BATCH
    created = [one.id for answers in outcomes for one in answers if isinstance(one, RegistrationEntry)]
    assert sorted(created) == sorted(found), "who was told of success made it"
    for answers in outcomes:
        for one in answers:
            if not isinstance(one, RegistrationEntry):
                assert isinstance(one, Conflict)
                assert one.existing.id in found
