"""Workload SVIDs stay fresh, wrong ones are refused (R20 to R22, R42, R48-like taint, half-life)."""

from datetime import timedelta

import pytest

from node_agent.services.renew_svids import LONGEST_GATE
from spiffe_core.errors import NotFound, Unavailable
from tests.authority import SpiffeTestCA
from tests.builders import make_entry, selectors
from tests.unit.node_agent.conftest import make_world

UID = selectors("unix:uid:1000")


async def serving(*entries, **options):
    world = make_world(**options)
    world.server.publish(*(entries or (make_entry(),)))
    await world.settle()
    return world


def held(world, entry_id="entry-1"):
    return world.workloads.held(entry_id)


async def test_an_svid_is_renewed_at_half_life_counted_from_issue():
    """With SVIDs of 12 s each is replaced about 6 s after issue, with a new key."""
    world = await serving(ttl=12)
    first = held(world)
    world.clock.advance(5.9)
    await world.fetch()
    assert held(world) is first
    world.clock.advance(0.2)
    await world.fetch()
    assert held(world).not_after > first.not_after
    assert held(world).identity.key != first.identity.key


async def test_a_stream_through_six_rotations_never_sees_an_expired_svid():
    """The issue's last line: 12 s SVIDs, one stream, six rotations; the polls go on meanwhile."""
    world = await serving(ttl=12)
    seen = set()
    with world.workloads.subscribe(UID) as watch:
        for tick in range(450):
            world.clock.advance(0.1)
            await world.fetch()
            world.workloads.expire(world.renewals._plan)
            await world.workloads.publish()
            if tick % 50 == 0:
                await world.sync.once()
            (svid,) = watch.value.x509_svids
            seen.add(svid.chain)
            assert held(world).not_after > world.clock.now() + timedelta(seconds=4)
    assert len(seen) >= 7


async def test_jitter_is_drawn_once_per_svid():
    draws = []

    def draw():
        draws.append(1)
        return 0.5

    world = await serving(draw=draw)
    drawn = len(draws)
    for _ in range(50):
        world.clock.advance(1)
        await world.fetch()
    assert len(draws) == drawn


WRONG = {
    "another ID": {"uris": ("spiffe://example.org/admin",)},
    "a CA": {"ca": True},
    "not yet valid": {"not_before": "later"},
    "expired": {"not_after": "now"},
    "another authority": {"ca_of": "stranger"},
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_certificate_is_refused_the_old_one_kept_and_counted(name):
    """R42."""
    world = await serving()
    before = held(world)
    world.clock.advance(1801)
    spoil = dict(WRONG[name])
    now = world.clock.now()
    if spoil.get("not_before"):
        spoil["not_before"] = now + timedelta(minutes=10)
    if spoil.get("not_after"):
        spoil["not_after"] = now
    if spoil.get("ca_of"):
        spoil["ca_of"] = SpiffeTestCA("example.org", now=now)
    world.server.spoil_next.append(spoil)
    await world.fetch()
    assert held(world) is before
    assert world.renewals.refusals.total() == 1
    world.clock.advance(2)
    await world.fetch()
    assert held(world) is not before


async def test_a_certificate_for_another_key_is_refused():
    """R42."""
    from spiffe_core.crypto.keys import KeyKind, generate

    world = await serving()
    before = held(world)
    world.clock.advance(1801)
    world.server.spoil_next.append({"key": generate(KeyKind.EC_P256)})
    await world.fetch()
    assert held(world) is before


async def test_an_unknown_authority_asks_for_the_bundle_at_once():
    """The server signs with a root the agent has not read yet: sync now, not in five seconds."""
    world = await serving()
    asked = []
    world.renewals.on_unknown_authority = lambda: asked.append(1)
    world.server.rotate()
    world.clock.advance(1801)
    await world.fetch()
    assert asked == [1]
    await world.sync.once()
    world.clock.advance(2)
    await world.fetch()
    assert held(world).anchor == world.server.ca.der


async def test_svids_of_a_tainted_authority_are_replaced_at_once(caplog):
    """spire_features 16.4: not at half-life. The log says when it begins and when the last one is replaced."""
    caplog.set_level("INFO")
    world = await serving(make_entry(), make_entry(id="e2", spiffe_id="/db"))
    old = world.server.ca
    world.server.rotate()
    await world.sync.once()
    await world.fetch()
    assert {svid.anchor for _, svid in world.workloads.all_held()} == {old.der}
    world.server.taint(old)
    await world.sync.once()
    assert "replacing 2 SVIDs" in caplog.text
    assert "replaced all" not in caplog.text
    await world.fetch()
    assert {svid.anchor for _, svid in world.workloads.all_held()} == {world.server.ca.der}
    assert "replaced all SVIDs of tainted" in caplog.text


async def test_an_answer_that_was_signed_before_its_authority_was_tainted_is_replaced_soon():
    """spire_features 16.4: it crossed the sync that told of the taint, so nobody else would replace it before half-life."""
    world = await serving()
    late = world.server.ca
    world.server.taint(late)
    await world.sync.once()
    await world.fetch()
    assert held(world).anchor == late.der, "it is still signing as far as this test is concerned"
    world.server.rotate()
    await world.sync.once()
    world.clock.advance(2)
    await world.fetch()
    assert held(world).anchor == world.server.ca.der


async def test_svids_of_a_removed_authority_are_replaced_at_once():
    world = await serving()
    old = world.server.ca
    world.server.rotate()
    world.server.drop(old)
    await world.sync.once()
    await world.fetch()
    assert held(world).anchor == world.server.ca.der


async def test_an_entry_the_server_refuses_backs_off_alone():
    world = await serving(make_entry(), make_entry(id="bad", spiffe_id="/bad"))
    world.server.troubles_of["bad"] = NotFound("entry not found or not authorized")
    world.clock.advance(1801)
    world.server.issued.clear()
    for _ in range(20):
        await world.fetch()
        world.clock.advance(1)
    asked = [one for batch in world.server.issued for one in batch]
    assert asked.count("entry-1") == 1
    assert 3 <= asked.count("bad") <= 6


async def test_a_refused_entry_does_not_hold_back_the_others_of_a_workload():
    world = make_world()
    world.server.publish(make_entry(), make_entry(id="bad", spiffe_id="/bad"))
    world.server.troubles_of["bad"] = NotFound("entry not found or not authorized")
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        assert [one.spiffe_id.path for one in watch.value.x509_svids] == ["/web"]


async def test_the_first_message_waits_for_all_identities():
    """A workload with two identities does not begin with one of them."""
    world = make_world()
    world.server.publish(make_entry(), make_entry(id="e2", spiffe_id="/db"))
    await world.membership.advance()
    await world.sync.once()
    with world.workloads.subscribe(UID) as watch:
        assert watch.value is None
        await world.fetch()
        assert len(watch.value.x509_svids) == 2


async def test_while_the_server_is_away_attempts_are_bounded_and_spread():
    """R20: no stampede; when it returns everything is renewed within 30 s."""
    entries = [make_entry(id=f"e{n}", spiffe_id=f"/w{n}") for n in range(50)]
    world = await serving(*entries)
    world.clock.advance(1801)
    world.server.issued.clear()
    world.server.troubles.extend([Unavailable("down")] * 10_000)
    for _ in range(600):
        if world.steady.now() >= world.renewals._gate:
            await world.renewals.renew_due()
        world.clock.advance(1)
    assert len(world.server.issued) < 80
    assert all(svid.not_after > world.clock.now() for _, svid in world.workloads.all_held())
    world.server.troubles.clear()
    begin = world.steady.now()
    while any(svid.not_after < world.clock.now() + timedelta(minutes=40) for _, svid in world.workloads.all_held()):
        if world.steady.now() >= world.renewals._gate:
            await world.fetch()
        world.clock.advance(0.5)
    assert world.steady.now() - begin < 30
    assert world.renewals._gate - begin <= LONGEST_GATE * 1.2


async def test_a_failing_call_halves_the_batch_and_success_doubles_it():
    entries = [make_entry(id=f"e{n:03}", spiffe_id=f"/w{n}") for n in range(20)]
    world = await serving(*entries)
    world.renewals._batch.size = 16
    world.clock.advance(1801)
    world.server.issued.clear()
    world.server.troubles.append(Unavailable("too slow"))
    await world.fetch()
    assert [len(batch) for batch in world.server.issued] == [16, 8, 12]


async def test_a_batch_is_never_larger_than_500():
    """spire_features 16.2."""
    entries = [make_entry(id=f"e{n:04}", spiffe_id=f"/w{n}") for n in range(520)]
    world = make_world()
    world.server.publish(*entries)
    await world.settle()
    assert [len(batch) for batch in world.server.issued] == [500, 20]


async def test_who_waits_is_served_before_the_background():
    world = make_world()
    world.server.publish(
        *(make_entry(id=f"e{n:02}", spiffe_id=f"/w{n}", selectors=[f"unix:uid:{n}"]) for n in range(9))
    )
    await world.membership.advance()
    await world.sync.once()
    world.renewals._batch.size = 3
    with world.workloads.subscribe(selectors("unix:uid:8")):
        await world.renewals.renew_due()
        assert world.server.issued[0][0] == "e08"


async def test_the_waiting_lane_serves_only_who_waits():
    world = make_world()
    world.server.publish(make_entry(), make_entry(id="e2", spiffe_id="/db", selectors=["unix:uid:7"]))
    await world.membership.advance()
    await world.sync.once()
    assert await world.renewals.renew_due(waiting_only=True) == 0
    with world.workloads.subscribe(selectors("unix:uid:7")):
        assert await world.renewals.renew_due(waiting_only=True) == 1
    assert world.server.issued == [["e2"]]


async def test_prefetch_can_be_off_and_the_svid_comes_on_demand():
    """disable_x509_svid_prefetch (spire_features 16.5)."""
    world = await serving(make_entry(disable_x509_svid_prefetch=True))
    assert held(world) is None
    with world.workloads.subscribe(UID) as watch:
        assert watch.value is None
        await world.fetch()
        assert len(watch.value.x509_svids) == 1


async def test_prefetch_is_bounded_and_who_asks_is_served_beyond_it():
    world = await serving(*(make_entry(id=f"e{n}", selectors=[f"unix:uid:{n}"]) for n in range(9)), prefetch=3)
    assert len(world.workloads.all_held()) == 3
    with world.workloads.subscribe(selectors("unix:uid:8")) as watch:
        await world.fetch()
        assert len(watch.value.x509_svids) == 1
    world.clock.advance(1801)
    await world.fetch()
    fresh = [
        one for one, svid in world.workloads.all_held() if svid.not_after > world.clock.now() + timedelta(minutes=40)
    ]
    assert len(fresh) == 3


async def test_a_changed_entry_gets_a_new_svid_and_keeps_the_old_until_then():
    world = await serving()
    before = held(world)
    world.server.publish(make_entry(revision_number=1))
    await world.sync.once()
    assert held(world) is before
    await world.fetch()
    assert held(world) is not before


async def test_a_renamed_entry_never_serves_its_old_name():
    world = await serving()
    with world.workloads.subscribe(UID) as watch:
        world.server.publish(make_entry(revision_number=1, spiffe_id="/renamed"))
        await world.sync.once()
        assert watch.value is None
        await world.fetch()
        assert [one.spiffe_id.path for one in watch.value.x509_svids] == ["/renamed"]


async def test_an_entry_renamed_while_its_svid_is_fetched_does_not_get_the_old_name():
    world = make_world()
    world.server.publish(make_entry())
    await world.membership.advance()
    await world.sync.once()
    issue = world.server.issue_svids

    async def renamed_meanwhile(requests):
        answers = await issue(requests)
        world.server.publish(make_entry(revision_number=1, spiffe_id="/renamed"))
        world.server.issue_svids = issue
        await world.sync.once()
        return answers

    world.server.issue_svids = renamed_meanwhile
    await world.fetch()
    assert held(world).identity.spiffe_id.path == "/renamed"


async def test_an_entry_removed_while_its_svid_is_fetched_is_not_served():
    world = make_world()
    world.server.publish(make_entry())
    await world.membership.advance()
    await world.sync.once()
    issue = world.server.issue_svids

    async def removed_meanwhile(requests):
        answers = await issue(requests)
        world.server.remove("entry-1")
        await world.sync.once()
        return answers

    world.server.issue_svids = removed_meanwhile
    await world.fetch()
    assert world.workloads.all_held() == []


async def test_nothing_is_taken_into_use_after_a_ban():
    """A19: the answer was under way when everything was forgotten."""
    world = make_world()
    world.server.publish(make_entry())
    await world.membership.advance()
    await world.sync.once()
    issue = world.server.issue_svids

    async def banned_meanwhile(requests):
        answers = await issue(requests)
        world.workloads.ban()
        return answers

    world.server.issue_svids = banned_meanwhile
    await world.fetch()
    assert world.workloads.all_held() == []


async def test_a_ban_in_answer_to_a_signing_call_counts():
    """A19."""
    world = await serving()
    world.server.ban()
    world.clock.advance(1801)
    await world.renewals.renew_due()
    assert world.workloads.banned
    assert world.workloads.all_held() == []


async def test_a_machine_that_slept_renews_at_once():
    """R17-like: the wall clock leapt by an hour, the timers did not."""
    world = await serving()
    before = held(world)
    world.clock.jump(3000)
    await world.fetch()
    assert held(world) is not before


async def test_a_clock_set_back_makes_no_storm():
    """R18."""
    world = await serving()
    world.server.issued.clear()
    world.clock.jump(-120)
    for _ in range(100):
        world.clock.advance(1)
        await world.fetch()
    assert world.server.issued == []
