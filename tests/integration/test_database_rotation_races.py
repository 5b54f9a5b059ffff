"""200 rotations, each with something in the way: a server that stood still (R32), a COMMIT without an answer (R33)."""

import asyncio

import pytest

from identity_server.domain.authority import PROPAGATION_SECONDS, Status
from identity_server.domain.rotation import activate_after, prepare_after
from identity_server.keys import MemoryKeys
from identity_server.store import sql_store, writer
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import Unavailable
from spiffe_core.spiffe_id import SpiffeId
from tests.builders import TD
from tests.databases import SHARED_KINDS, running_store, url_of
from tests.doubles.authority_rig import authorities_of, consistent, stored
from tests.doubles.clock import FakeClock
from tests.doubles.database_proxy import DatabaseProxy
from tests.doubles.held_follower import held_back, seen

ROUNDS = 200
PARTS = 2
"""Each on a database of its own."""
LATE_EVERY = 20
"""One round in so many: the caller is told "perhaps" before the database has heard the COMMIT."""
LEAF_KEY = generate(KeyKind.EC_P256).public_key()


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


def signs(server):
    server.issuer.issue("server", SpiffeId(TD, "/spire/server"), LEAF_KEY)


def until_due(server, clock):
    """How long until the next step: to prepare in the middle of the life of what signs, or to activate near its end."""
    slots = server.slots("x509")
    due = prepare_after(slots.active) if slots.prepared is None else activate_after(slots.active)
    return max(due + 1 - clock.now().timestamp(), PROPAGATION_SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
async def test_whoever_stood_still_through_a_step_carries_out_no_stale_plan(url, part):
    """R32: 200 rounds in two parts on two processes of one server, either of which sleeps while the other takes the step.

    The sleeper's plan to prepare or to activate is refused or changes nothing: no second key, no second signer, and
    what it signs in its ignorance is signed by an authority that stands in the bundle. Awake, it goes on by itself.
    """
    clock, keys = FakeClock(), MemoryKeys()
    async with (
        running_store(url, server_id="one", clock=clock) as store,
        running_store(url, server_id="one", clock=clock) as twin_store,
    ):
        one, twin = authorities_of(store, "one", clock, keys), authorities_of(twin_store, "one", clock, keys)
        await one.start()
        await seen(twin_store, lambda state: state.authorities)
        await twin.start()
        steps = set()
        for number in range(part, part + ROUNDS // PARTS):
            (asleep, behind), (awake, ahead) = sorted(
                ((one, store), (twin, twin_store)), key=lambda pair: (pair[0] is one) == bool(number % 3)
            )
            async with held_back(behind):
                clock.advance(until_due(awake, clock))
                await awake.tick()
                assert awake.last_error is None
                after = awake.slots("x509")
                steps.add(after.prepared is None)
                await asleep.tick()
                assert isinstance(asleep.last_error, Unavailable), f"round {number}: its plan is stale"
                signs(asleep)
                journal, published = await stored(ahead, "one")
                consistent(journal, published, keys)
                assert {row.authority_id for row in journal} == {row.authority_id for row in after}
                assert asleep.active is not None
                assert asleep.active.authority_id in published
            await seen(behind, lambda state, after=after: set(state.authorities) == set(after))
            await asleep.tick()
            assert asleep.last_error is None
            assert asleep.active == awake.active == after.active
        assert steps == {True, False}, "both steps were raced for"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
async def test_a_commit_without_an_answer_never_lets_anything_sign_that_is_not_stored(url, part, monkeypatch):
    """R33: 200 rounds in two parts, cut before the COMMIT, after it, and now and then with the caller gone before it arrives."""
    monkeypatch.setattr(writer, "SETTLE_SECONDS", 15.0)
    clock, keys = FakeClock(), MemoryKeys()
    with DatabaseProxy(url) as proxy:
        async with running_store(proxy.url, server_id="one", clock=clock) as store:
            one = authorities_of(store, "one", clock, keys)
            await one.start()
            signers = set()
            for number in range(part, part + ROUNDS // PARTS):
                clock.advance(until_due(one, clock))
                late = not number % LATE_EVERY
                proxy.cut_at_commit("late" if late else ("before", "after")[number % 2])
                if late:
                    monkeypatch.setattr(sql_store, "ANSWER_SECONDS", 0.05)
                    await one.tick()
                    assert isinstance(one.last_error, Unavailable)
                    proxy.deliver()
                    monkeypatch.setattr(sql_store, "ANSWER_SECONDS", 30.0)
                async with asyncio.timeout(20):
                    await one.tick()
                    while one.last_error is not None:
                        await asyncio.sleep(0.01)
                        await one.tick()
                assert proxy.cuts == number - part + 1
                journal, published = await stored(store, "one")
                consistent(journal, published, keys)
                assert sum(row.status is Status.ACTIVE for row in journal) == 1
                assert one.active in journal
                signs(one)
                signers.add(one.active.authority_id)
            assert len(signers) > ROUNDS // PARTS // 3
