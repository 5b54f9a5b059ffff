"""Who gets what, and when it is told (WorkloadBackend; N-A-09, N-A-26, N-A-28 to N-A-30, N-A-39, R20, R21)."""

import asyncio

import pytest

from spiffe_core.errors import NoIdentityIssued, Unauthenticated, Unavailable
from tests.builders import make_entry, selectors
from tests.unit.node_agent.conftest import Process, make_world
from workload_api.streams import Streams

UID = selectors("unix:uid:1000")


async def serving(*entries, **options):
    world = make_world(**options)
    world.server.publish(*(entries or (make_entry(),)))
    await world.settle()
    return world


def paths(view):
    return [svid.spiffe_id.path for svid in view.x509_svids]


async def test_nothing_matches_is_an_empty_view_not_an_unknown_one():
    """N-A-09: the service answers PermissionDenied."""
    world = await serving()
    with world.workloads.subscribe(selectors("unix:uid:7")) as watch:
        assert watch.value.x509_svids == ()


async def test_identities_come_in_the_order_of_entry_ids():
    """spire_features 15.3: the first is the default identity."""
    world = await serving(make_entry(id="b", spiffe_id="/b"), make_entry(id="a", spiffe_id="/a"))
    with world.workloads.subscribe(UID) as watch:
        assert paths(watch.value) == ["/a", "/b"]


async def test_more_selectors_than_needed_match_too():
    world = await serving(
        make_entry(), make_entry(id="entry-2", spiffe_id="/narrow", selectors=["unix:uid:1000", "unix:path:/x"])
    )
    with world.workloads.subscribe(UID) as few, world.workloads.subscribe(UID | selectors("unix:path:/x")) as many:
        assert paths(few.value) == ["/web"]
        assert paths(many.value) == ["/web", "/narrow"]


async def test_of_two_equal_hints_the_older_entry_keeps_its_place():
    """N-A-39, WAPI-24."""
    world = await serving(
        make_entry(id="a", spiffe_id="/young", hint="internal", created_at=20),
        make_entry(id="b", spiffe_id="/old", hint="internal", created_at=10),
    )
    with world.workloads.subscribe(UID) as watch:
        assert [(one.spiffe_id.path, one.hint) for one in watch.value.x509_svids] == [("/old", "internal")]


async def test_a_changed_hint_is_shown_without_a_new_svid():
    world = await serving(make_entry(hint="one"))
    with world.workloads.subscribe(UID) as watch:
        world.server.publish(make_entry(hint="two", revision_number=1))
        await world.sync.once()
        assert watch.value.x509_svids[0].hint == "two"


async def test_store_svid_entries_are_never_served():
    """spire_features 16.5."""
    world = await serving(make_entry(store_svid=True))
    with world.workloads.subscribe(UID) as watch:
        assert watch.value.x509_svids == ()
    assert world.server.issued == []


async def test_admin_and_downstream_entries_are_served_like_others():
    world = await serving(make_entry(admin=True), make_entry(id="entry-2", spiffe_id="/down", downstream=True))
    with world.workloads.subscribe(UID) as watch:
        assert paths(watch.value) == ["/web", "/down"]


async def test_one_view_is_shared_by_all_who_have_the_same_selectors():
    """B4: a thousand streams of one workload cost one view."""
    world = await serving()
    with world.workloads.subscribe(UID) as first, world.workloads.subscribe(UID) as second:
        assert first is second


async def test_a_subscription_ends_with_its_last_follower():
    world = await serving()
    with world.workloads.subscribe(UID):
        with world.workloads.subscribe(UID):
            pass
        assert world.workloads.is_followed(make_entry())
    assert not world.workloads.is_followed(make_entry())
    assert not world.workloads._following
    assert not world.workloads._audiences._having


async def test_a_renewal_is_published_to_its_followers_only():
    world = await serving(
        make_entry(), make_entry(id="entry-2", spiffe_id="/x", selectors=["unix:uid:7"], created_at=3)
    )
    with world.workloads.subscribe(UID) as mine, world.workloads.subscribe(selectors("unix:uid:7")) as other:
        world.renewals._plan.drop("entry-2")
        before = (mine.version, other.version)
        world.clock.advance(1801)
        await world.fetch()
        assert (mine.version - before[0], other.version - before[1]) == (1, 0)


async def test_an_ended_svid_is_left_out_beside_one_that_is_good():
    """N-A-26: expired SVIDs are never sent."""
    world = await serving(make_entry())
    world.server.publish(make_entry(id="entry-2", spiffe_id="/db"))
    world.clock.advance(1000)
    await world.sync.once()
    await world.fetch()
    with world.workloads.subscribe(UID) as watch:
        assert paths(watch.value) == ["/web", "/db"]
        world.clock.advance(2601)
        world.workloads.expire()
        await world.workloads.publish()
        assert paths(watch.value) == ["/db"]
    with world.workloads.subscribe(UID | selectors("unix:gid:1")) as fresh:
        assert paths(fresh.value) == ["/db"]


async def test_when_all_have_ended_the_view_still_says_that_something_matches():
    """R21: the service answers Unavailable, not PermissionDenied, and bundles go on."""
    world = await serving()
    world.clock.advance(3601)
    assert world.workloads.expire({"entry-1"}) is None
    await world.workloads.publish()
    with world.workloads.subscribe(UID) as watch:
        assert paths(watch.value) == ["/web"]
        assert watch.value.x509_svids[0] == world.workloads.held("entry-1").identity


async def test_keys_nobody_follows_are_dropped_at_their_end():
    world = await serving()
    world.clock.advance(3601)
    world.workloads.expire()
    assert world.workloads.held("entry-1") is None


async def test_the_next_expiry_is_told():
    world = await serving(ttl=12)
    assert world.workloads.expire() == pytest.approx(world.steady.now() + 12, abs=1)


async def test_after_an_outage_longer_than_the_svids_live_it_recovers_without_a_restart():
    """R21."""
    world = await serving(agent_ttl=100_000)
    with world.workloads.subscribe(UID) as watch:
        world.clock.advance(3601)
        world.workloads.expire()
        await world.workloads.publish()
        await world.fetch()
        assert watch.value.x509_svids[0] == world.workloads.held("entry-1").identity
        assert world.workloads.held("entry-1").not_after > world.clock.now()


async def test_a_ban_ends_streams_before_anything_is_awaited():
    """A19: at once."""
    world = await serving()
    with world.workloads.subscribe(UID) as watch:
        world.workloads.ban()
        assert watch.value.x509_svids == ()
        assert world.workloads.all_held() == []


async def test_a_banned_agent_says_no_identity_also_before_its_first_sync():
    world = make_world()
    world.workloads.ban()
    with pytest.raises(NoIdentityIssued):
        await world.workloads.attest(Process())
    with world.workloads.subscribe(UID) as watch:
        assert watch.value.x509_svids == ()


async def test_attestation_reads_the_process_each_time():
    """A20."""
    world = await serving()
    world.attestors[0].selectors = UID
    process = Process()
    assert await world.workloads.attest(process) == UID
    world.attestors[0].selectors = selectors("unix:uid:1000", "unix:path:/other")
    assert await world.workloads.attest(process) == world.attestors[0].selectors
    process.ended = True
    with pytest.raises(Unauthenticated):
        await world.workloads.attest(process)


async def test_publishing_to_thousands_of_audiences_lets_the_loop_breathe():
    """A7: nothing holds the loop longer than a few milliseconds."""
    world = await serving(*(make_entry(id=f"e{n}", spiffe_id=f"/w{n}") for n in range(20)))
    audiences = [UID | selectors(f"unix:path:/bin/{n}") for n in range(1500)]
    contexts = [world.workloads.subscribe(audience) for audience in audiences]
    for context in contexts:
        context.__enter__()
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(count_turns())
        world.server.rotate()
        await world.sync.once()
        counting.cancel()
    assert turns > 5
    for context in contexts:
        context.__exit__(None, None, None)


async def test_before_the_first_sync_attestation_is_unavailable(world):
    """N-A-24."""
    with pytest.raises(Unavailable):
        await world.workloads.attest(Process())


async def test_a_ban_ends_a_stream_that_only_waits_for_an_entry_and_lets_none_begin():
    """A19: every stream, also of workloads that have no identity and wait for one."""
    world = await serving()
    streams = Streams(world.workloads)
    views = streams.follow(Process(uid=7))
    assert (await anext(views)).x509_svids == ()
    waiting = asyncio.ensure_future(anext(views))
    await asyncio.sleep(0)
    world.workloads.ban()
    async with asyncio.timeout(10):
        with pytest.raises(NoIdentityIssued):
            await waiting
        with pytest.raises(NoIdentityIssued):
            await anext(streams.follow(Process(uid=7)))
    assert streams.open == 0
