"""Following the server's entries and bundles (spire_features 16.2, R20, R41, R44, N-A-24)."""

from dataclasses import replace

import pytest

from node_agent.domain.standing import Phase
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import InvalidBundle, Refusal, Unavailable, Unimplemented
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from tests.builders import TD, make_entry, selectors
from tests.unit.node_agent.conftest import Process, make_world

UID = selectors("unix:uid:1000")
FED = TrustDomain("fed.test")


def paths(view):
    return [svid.spiffe_id.path for svid in view.x509_svids]


async def test_a_registered_workload_is_served_after_one_sync(world):
    world.server.publish(make_entry())
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        assert paths(watch.value) == ["/web"]
        assert watch.value.bundle == world.server.bundle()


async def test_before_the_first_sync_callers_get_unavailable(world):
    """N-A-24: Unavailable, not PermissionDenied."""
    await world.membership.advance()
    with pytest.raises(Unavailable, match="first synchronisation"):
        await world.workloads.attest(Process())


async def test_a_restored_agent_without_its_server_answers_unavailable(world):
    """N-A-24 after a restart: what may be served is not known before the server said so."""
    await world.settle()
    again = make_world(state=world.disk.saved[-1], clock=world.clock, server=world.server)
    world.server.troubles.extend([Unavailable("down")] * 5)
    await again.sync.once()
    with pytest.raises(Unavailable):
        await again.workloads.attest(Process())


async def test_an_added_entry_reaches_an_open_stream(world):
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        assert watch.value.x509_svids == ()
        world.server.publish(make_entry())
        await world.sync.once()
        await world.fetch()
        assert paths(watch.value) == ["/web"]


async def test_a_removed_entry_leaves_an_open_stream_at_the_sync(world):
    """N-A-28, N-A-29."""
    world.server.publish(make_entry(), make_entry(id="entry-2", spiffe_id="/db"))
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        assert paths(watch.value) == ["/web", "/db"]
        world.server.remove("entry-1")
        await world.sync.once()
        assert paths(watch.value) == ["/db"]
        world.server.remove("entry-2")
        await world.sync.once()
        assert watch.value.x509_svids == ()


async def test_an_unchanged_sync_publishes_nothing(world):
    world.server.publish(make_entry())
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        version = watch.version
        for _ in range(3):
            await world.sync.once()
        assert watch.version == version


async def test_only_the_audiences_concerned_are_woken(world):
    """A change for one workload does not wake the others."""
    world.server.publish(make_entry())
    await world.settle()
    with world.workloads.subscribe(UID) as mine, world.workloads.subscribe(selectors("unix:uid:7")) as other:
        before = (mine.version, other.version)
        world.server.publish(make_entry(id="entry-2", spiffe_id="/seven", selectors=["unix:uid:7"]))
        await world.sync.once()
        await world.fetch()
        assert mine.version == before[0]
        assert other.version > before[1]


async def test_a_new_root_reaches_every_stream(world):
    world.server.publish(make_entry())
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        world.server.rotate()
        await world.sync.once()
        assert len(watch.value.bundle.x509_authorities) == 2


async def test_bundles_of_federated_trust_domains_are_fetched_and_go_with_the_entry(world):
    """N-A-30."""
    fed = SpiffeTestCA("fed.test").bundle()
    world.server.federated[FED] = fed
    world.server.publish(make_entry(federates_with=(FED,)))
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        assert watch.value.federated == (fed,)
        world.server.publish(make_entry(revision_number=1))
        await world.sync.once()
        assert watch.value.federated == ()
        assert paths(watch.value) == ["/web"]


async def test_only_federated_bundles_of_matching_entries_are_shown(world):
    world.server.federated[FED] = SpiffeTestCA("fed.test").bundle()
    world.server.publish(make_entry(), make_entry(id="e2", selectors=["unix:uid:7"], federates_with=(FED,)))
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        assert watch.value.federated == ()


@pytest.mark.parametrize("answer", ["none", "unimplemented"])
async def test_a_federated_bundle_the_server_does_not_have_stops_nothing(world, answer):
    world.server.publish(make_entry(federates_with=(FED,)))
    if answer == "unimplemented":
        world.server.troubles_of[f"fetch_federated_bundle {FED}"] = Unimplemented("no")
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        assert paths(watch.value) == ["/web"]
        assert watch.value.federated == ()


async def test_an_unreadable_federated_bundle_leaves_the_good_one_in_force(world):
    fed = SpiffeTestCA("fed.test").bundle()
    world.server.federated[FED] = fed
    world.server.publish(make_entry(federates_with=(FED,)))
    await world.settle()
    world.server.troubles_of[f"fetch_federated_bundle {FED}"] = InvalidBundle("broken")
    await world.sync.once()
    assert world.workloads.bundles.federated[FED] == fed


async def test_a_bundle_of_another_trust_domain_than_asked_is_not_taken(world):
    world.server.federated[FED] = SpiffeTestCA("evil.test").bundle()
    world.server.publish(make_entry(federates_with=(FED,)))
    await world.settle()
    assert not world.workloads.bundles.federated


async def test_while_the_server_is_away_everything_stays(world):
    """R20, N-A-26."""
    world.server.publish(make_entry())
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        version = watch.version
        world.server.troubles.extend([Unavailable("down")] * 3)
        assert [await world.sync.once() for _ in range(4)] == [False, False, False, True]
        assert watch.version == version
        assert paths(watch.value) == ["/web"]


async def test_an_empty_own_bundle_is_refused_whole(world):
    await world.settle()
    world.server.authorities.clear()
    assert not await world.sync.once()
    assert world.workloads.bundles.own.x509_authorities


async def test_backoff_grows_to_25_seconds_and_resets(world):
    """R20, R40: x1.5 as SPIRE, but never so long that the agent is not back within a minute of the server's return."""
    await world.settle()
    assert world.sync.next_wait() == 5.0
    world.server.troubles.extend([Unavailable("down")] * 30)
    waits = []
    for _ in range(30):
        await world.sync.once()
        waits.append(world.sync.next_wait())
    assert waits[:2] == [7.5, 11.25]
    assert waits[-1] == 25.0
    assert await world.sync.once()
    assert world.sync.next_wait() == 5.0


async def test_a_server_that_starts_beside_the_agent_is_found_soon(world):
    """B1: the first sync is tried again after a tenth of a second, or the time it has been away once more, at most."""
    await world.membership.advance()
    world.server.troubles.extend([Unavailable("starting")] * 12)
    passed = 0.0
    for number in range(12):
        assert not await world.sync.once()
        wait = world.sync.next_wait()
        assert wait <= max(0.1, passed), (number, wait)
        passed += wait
    assert 1.0 < passed < 5.0


async def test_a_renewed_svid_does_not_end_the_patience_with_a_server_that_is_away(world):
    """R40: only who has nothing to give to workloads hurries."""
    await world.settle()
    session = world.membership.session
    world.membership.session = replace(session, generation=session.generation + 1)
    for listener in world.membership.on_change:
        listener()
    world.server.troubles.extend([Unavailable("down")] * 10)
    for _ in range(10):
        await world.sync.once()
    assert world.sync.next_wait() == 25.0


async def test_the_interval_has_ten_percent_of_jitter():
    late = make_world(draw=lambda: 1.0)
    assert late.sync.next_wait() == pytest.approx(5.5)


async def test_the_version_is_announced_once_and_failure_is_no_matter(world):
    await world.settle()
    assert world.server.status == ("muniment/0.1.0", 1)
    await world.sync.once()
    assert world.server.calls.count("post_status") == 1
    other = make_world()
    other.server.troubles_of["post_status"] = Unavailable("no")
    await other.settle()
    assert other.sync.synced


async def test_a_ban_at_a_sync_ends_every_stream_with_nothing(world):
    """A19, R44: within one sync, and an empty view means PermissionDenied."""
    world.server.publish(make_entry())
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        world.server.ban()
        await world.sync.once()
        assert watch.value.x509_svids == ()
    assert world.membership.session.phase is Phase.REJECTED
    assert world.workloads.all_held() == []
    with world.workloads.subscribe(UID) as watch:
        assert watch.value.x509_svids == ()


async def test_a_sync_under_way_cannot_bring_identities_back_after_a_ban(world):
    world.server.publish(make_entry())
    await world.settle()
    fetch = world.server.fetch_bundle

    async def banned_meanwhile():
        bundle = await fetch()
        world.membership.refused(Refusal.AGENT_BANNED, 0)
        return bundle

    world.server.fetch_bundle = banned_meanwhile
    world.server.publish(make_entry(id="e2", spiffe_id="/new"))
    await world.sync.once()
    await world.fetch()
    with world.workloads.subscribe(UID) as watch:
        assert watch.value.x509_svids == ()
    assert world.workloads.all_held() == []


async def test_an_eviction_at_a_sync_keeps_workloads_served(world):
    """A19: evicted agents keep serving what is valid and attest anew."""
    world.server.publish(make_entry())
    world.server.tokens["t2"] = None
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        world.clock.advance(60)
        world.server.evict()
        world.token.token = "t2"
        await world.sync.once()
        assert world.membership.session.phase is Phase.UNJOINED
        assert paths(watch.value) == ["/web"]
        await world.membership.advance()
        assert world.membership.session.phase is Phase.JOINED
        assert await world.sync.once()


async def test_entries_deleted_and_made_anew_are_seen(world):
    """R47: same id, same revision, other content."""
    world.server.publish(make_entry(created_at=100))
    await world.settle()
    with world.workloads.subscribe(UID) as watch:
        world.server.publish(make_entry(created_at=105, spiffe_id="/other"))
        await world.sync.once()
        await world.fetch()
        assert paths(watch.value) == ["/other"]


async def test_an_older_bundle_from_the_server_is_believed_over_an_authenticated_connection(world):
    """R50: a restored backup may have a lower sequence."""
    await world.settle()
    world.server.sequence = 0
    assert await world.sync.once()
    assert world.workloads.bundles.own == replace(world.server.bundle())
    assert isinstance(world.workloads.bundles.own, TrustBundle)
    assert world.workloads.bundles.own.trust_domain == TD
