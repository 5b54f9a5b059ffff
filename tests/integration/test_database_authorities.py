"""Authorities when the database fails exactly as they are stored: R32, R33 on real PostgreSQL and MariaDB."""

import asyncio

import pytest

from identity_server.domain.authority import Status
from identity_server.keys import MemoryKeys
from identity_server.store import sql_store, writer
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.spiffe_id import SpiffeId
from tests.builders import TD
from tests.databases import SHARED_KINDS, running_store, url_of
from tests.doubles.authority_rig import authorities_of, consistent, stored
from tests.doubles.clock import FakeClock
from tests.doubles.database_proxy import DatabaseProxy
from tests.doubles.held_follower import held_back, seen

HOUR = 3600
LEAF_KEY = generate(KeyKind.EC_P256).public_key()


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


@pytest.mark.parametrize("moment", ["before", "after", "late"])
async def test_the_database_fails_exactly_as_an_authority_is_stored(url, moment, monkeypatch):
    """R33: nothing signs that is not stored, its key is never replaced, and the next ticks put things right.

    "late": the caller was told "perhaps" while the database had not heard the COMMIT yet; it does so afterwards.
    """
    monkeypatch.setattr(writer, "SETTLE_SECONDS", 15.0)
    clock, keys = FakeClock(), MemoryKeys()
    with DatabaseProxy(url) as proxy:
        async with running_store(proxy.url, server_id="one", clock=clock) as store:
            one = authorities_of(store, "one", clock, keys)
            await one.start()
            first = one.active.authority_id
            if moment == "late":
                monkeypatch.setattr(sql_store, "ANSWER_SECONDS", 0.3)
            for _ in range(1 if moment == "late" else 2):  # at PREPARE, and at ACTIVATE
                clock.advance(13 * HOUR if one.slots("x509").prepared is None else 8 * HOUR)
                proxy.cut_at_commit(moment)
                ticking = asyncio.ensure_future(one.tick())
                if moment == "late":
                    await ticking
                    assert isinstance(one.last_error, Unavailable)
                    ticking = asyncio.ensure_future(one.tick())  # it must not make another key meanwhile
                    await asyncio.sleep(0.1)
                    proxy.deliver()
                    monkeypatch.setattr(sql_store, "ANSWER_SECONDS", 30.0)
                await ticking
                async with asyncio.timeout(20):
                    while True:
                        await one.tick()
                        if one.last_error is None:
                            break
                        await asyncio.sleep(0.05)
                consistent(*await stored(store, "one"), keys)
                assert one.active is not None
            assert proxy.cuts >= 1
            clock.advance(12 * HOUR)
            await one.tick()
            consistent(*await stored(store, "one"), keys)
            assert one.active.authority_id != first
            one.issuer.issue("server", SpiffeId(TD, "/spire/server"), LEAF_KEY)


async def test_a_prepared_authority_whose_key_is_gone_never_becomes_active(url):
    """R33: it is given up and another is prepared, instead of nothing being signed from its turn on."""
    clock, keys = FakeClock(), MemoryKeys()
    async with running_store(url, server_id="one", clock=clock) as store:
        one = authorities_of(store, "one", clock, keys)
        await one.start()
        lost = await one.prepare("x509", "test")
        keys.generate(lost.key_slot, KeyKind.EC_P256)
        clock.advance(60)
        with pytest.raises(IdentityError, match="prepare another"):
            await one.activate("x509", lost.authority_id, "test")
        clock.advance(21 * HOUR)
        for _ in range(3):
            await one.tick()
            clock.advance(60)
        assert one.last_error is None
        assert one.active is not None
        assert one.active.authority_id != lost.authority_id
        consistent(*await stored(store, "one"), keys)


async def test_a_server_that_stood_still_through_a_rotation_carries_out_no_stale_plan(url):
    """R32: its memory is of before; a twin with its name did the step meanwhile, and the plan is refused."""
    clock, keys = FakeClock(), MemoryKeys()
    async with (
        running_store(url, server_id="one", clock=clock) as store,
        running_store(url, server_id="one", clock=clock) as twin,
    ):
        one, other = authorities_of(store, "one", clock, keys), authorities_of(twin, "one", clock, keys)
        await one.start()
        await seen(twin, lambda state: state.authorities)
        await other.start()
        async with held_back(store):
            clock.advance(13 * HOUR)
            await other.tick()
            prepared = other.slots("x509").prepared
            assert prepared is not None
            await one.tick()
            assert isinstance(one.last_error, Unavailable), "its plan to prepare is stale"
            journal, published = await stored(twin, "one")
            assert {row.authority_id for row in journal if row.status is not Status.OLD} <= published
            consistent(journal, published, keys)
        await seen(store, lambda state: prepared in state.authorities)
        await one.tick()
        assert one.last_error is None
        assert one.slots("x509").prepared == prepared
