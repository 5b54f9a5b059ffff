"""SVIDs that nobody follows: bounded, shared out, and never held without a plan to renew them."""

from datetime import UTC, datetime, timedelta

import pytest

from node_agent.domain.idle_svids import IdleSvids
from node_agent.domain.renewal import renewal_of
from spiffe_core.lifetime import renew_at
from tests.builders import make_entry, selectors
from tests.unit.node_agent.conftest import make_world

A, B = selectors("unix:uid:1"), selectors("unix:uid:2")
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def filled(most, **left):
    idle = IdleSvids(most)
    for name, holder in (("a", A), ("b", B), ("n", None)):
        for number in range(left.get(name, 0)):
            idle.leave(f"{name}{number}", holder)
    return idle


def test_who_left_most_gives_up_what_it_left_longest_ago():
    idle = filled(4, a=5, b=1)
    assert idle.overflow() == ["a0", "a1"]
    idle = filled(4, a=2, b=1, n=3)
    assert idle.overflow() == ["n0", "a0"], "equal holders: the one that has had so many for longest"
    assert len(idle) == 4
    assert idle.overflow() == []


def test_what_is_followed_again_is_not_idle():
    idle = filled(2, a=2)
    idle.take("a0")
    idle.take("unknown")
    idle.leave("b0", B)
    assert idle.overflow() == []
    assert "a0" not in idle
    idle.leave("a0", A)
    idle.leave("a0", B)
    assert idle.overflow() == ["a1"], "the oldest of who has most"
    idle.clear()
    assert (len(idle), idle.overflow()) == (0, [])
    assert filled(0, a=2).overflow() == ["a0", "a1"]
    with pytest.raises(ValueError, match="not negative"):
        IdleSvids(-1)


def entries(uid, count):
    return [make_entry(id=f"{uid}-{n}", spiffe_id=f"/{uid}/{n}", selectors=[f"unix:uid:{uid}"]) for n in range(count)]


async def test_a_stream_may_hold_more_than_the_bound_and_leaves_others_theirs():
    """The issue: on demand with a bound that cannot be pinned; what is in use is never given up."""
    world = make_world(prefetch=4)
    world.server.publish(*entries(1, 2), *entries(2, 20))
    await world.settle()
    with world.workloads.subscribe(A) as modest:
        await world.fetch()
        assert len(modest.value.x509_svids) == 2
    with world.workloads.subscribe(B) as greedy:
        while greedy.value is None or len(greedy.value.x509_svids) < 20:
            await world.fetch()
        assert {"1-0", "1-1"} <= {entry_id for entry_id, _ in world.workloads.all_held()}
        assert world.workloads.followed_count == 20
    held = [entry_id for entry_id, _ in world.workloads.all_held()]
    assert len(held) == 4, "it left: what is idle is bounded again"
    assert {"1-0", "1-1"} <= set(held), "who left no more than its share loses nothing"
    issued = len(world.server.issued)
    with world.workloads.subscribe(A) as again:
        assert len(again.value.x509_svids) == 2, "at hand, without asking the server"
    assert len(world.server.issued) == issued
    assert len(world.renewals._plan) == 4, "what was given up is not renewed"


async def test_an_svid_that_is_not_renewed_any_more_is_not_kept_for_the_next_who_comes():
    """Held without a plan it would end in the hands of whoever follows it next."""
    world = make_world()
    world.server.publish(make_entry(disable_x509_svid_prefetch=True))
    await world.settle()
    uid = selectors("unix:uid:1000")
    with world.workloads.subscribe(uid):
        await world.fetch()
    assert world.workloads.held_count == 1
    world.clock.advance(1801)
    await world.fetch()
    assert world.workloads.held_count == 0
    with world.workloads.subscribe(uid) as watch:
        await world.fetch()
        first = watch.value.x509_svids[0]
        world.clock.advance(1801)
        await world.fetch()
        assert watch.value.x509_svids[0].chain != first.chain


async def test_an_entry_that_changes_its_selectors_is_idle_or_in_use_as_they_say():
    world = make_world(prefetch=1)
    world.server.publish(make_entry(id="e", selectors=["unix:uid:1"]))
    await world.settle()
    with world.workloads.subscribe(B) as watch:
        assert world.workloads.followed_count == 0
        world.server.publish(make_entry(id="e", selectors=["unix:uid:2"], revision_number=1))
        await world.sync.once()
        await world.fetch()
        assert len(watch.value.x509_svids) == 1
        assert world.workloads.followed_count == 1
        world.server.publish(make_entry(id="e", selectors=["unix:uid:1"], revision_number=2))
        await world.sync.once()
        assert world.workloads.followed_count == 0


DAY = timedelta(days=1)
LATE = {
    "a week, for two days": (7 * DAY, 2 * DAY, -1.0, 5 * DAY),
    "spread by ten minutes": (7 * DAY, 2 * DAY, 1.0, 5 * DAY - timedelta(minutes=10)),
    "just long enough": (DAY + timedelta(hours=12, seconds=1), DAY, -1.0, timedelta(hours=12, seconds=1)),
}


@pytest.mark.parametrize("case", LATE)
def test_an_svid_is_good_for_the_target_when_it_is_replaced(case):
    """availability_target (spire_features 16.4)."""
    life, target, jitter, after = LATE[case]
    assert renewal_of(NOON, NOON + life, jitter=jitter, availability=target) == NOON + after


@pytest.mark.parametrize(("life", "target"), [(timedelta(hours=36), DAY), (timedelta(hours=1), DAY), (7 * DAY, None)])
def test_an_svid_that_does_not_live_long_enough_is_replaced_half_way(life, target):
    end = NOON + life
    assert renewal_of(NOON, end, jitter=0.3, availability=target) == renew_at(NOON, end, jitter=0.3)
