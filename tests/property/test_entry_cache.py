"""Laws of the agent's entry cache: diff then apply is the target; an index answers as asking everybody would."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from node_agent.domain.entry_cache import (
    AudienceIndex,
    EntryIndex,
    Listing,
    difference,
    merge,
    stamp_of,
    to_fetch,
)
from node_agent.domain.svid_plan import SvidPlan
from spiffe_core.entitlement import matching
from spiffe_core.selectors import Selector
from tests.builders import make_entry

SELECTORS = [Selector("unix", f"uid:{n}") for n in range(6)]
sets = st.frozensets(st.sampled_from(SELECTORS), min_size=1, max_size=4)
entries = st.builds(
    lambda number, chosen, revision, created: make_entry(
        id=f"e{number}", selectors=chosen, revision_number=revision, created_at=created
    ),
    st.integers(0, 7),
    sets,
    st.integers(0, 2),
    st.integers(0, 1),
)
snapshots = st.lists(entries, max_size=10).map(lambda listed: {entry.id: entry for entry in listed})


def applied(base, diff):
    result = dict(base)
    for entry in diff.removed:
        del result[entry.id]
    for _, new in diff.changed:
        result[new.id] = new
    for entry in diff.added:
        assert entry.id not in base
        result[entry.id] = entry
    return result


@given(snapshots, snapshots)
def test_a_difference_applied_is_the_target(old, new):
    assert applied(old, difference(old, new)) == new


@given(st.lists(snapshots, max_size=5), sets)
def test_the_index_answers_as_asking_every_entry_would(history, held):
    index, present = EntryIndex(), {}
    for snapshot in history:
        index.apply(difference(present, snapshot))
        present = snapshot
    assert index.matching(held) == matching(present.values(), held)


@given(st.sets(sets, max_size=8), entries)
def test_the_audience_index_answers_as_asking_every_audience_would(audiences, entry):
    index = AudienceIndex()
    for audience in audiences:
        index.add(audience)
    assert set(index.matched_by(entry)) == {one for one in audiences if entry.selectors <= one}
    for audience in audiences:
        index.discard(audience)
    assert not index._having


@given(snapshots, snapshots)
def test_fetching_what_differs_is_enough(known, truth):
    """The paged protocol ends in the server's snapshot, whatever was known (spire_wire 5.3).

    An entry whose content differs while revision and creation time agree cannot come from a server.
    """
    truth = {
        entry_id: known[entry_id] if entry_id in known and stamp_of(known[entry_id]) == stamp_of(entry) else entry
        for entry_id, entry in truth.items()
    }
    wanted = to_fetch(
        {entry_id: stamp_of(entry) for entry_id, entry in known.items()},
        {entry_id: stamp_of(entry) for entry_id, entry in truth.items()},
    )
    listing = Listing(frozenset(truth), tuple(truth[entry_id] for entry_id in wanted))
    assert merge(known, listing) == truth


operations = st.lists(
    st.tuples(
        st.sampled_from(["schedule", "hasten", "hurry", "drop", "take", "failed", "put_back"]), st.integers(0, 4)
    ),
    max_size=60,
)


@given(operations)
def test_no_order_of_events_loses_an_entry_or_hands_it_out_twice(script):
    """A planned entry is either waiting for its time or under way, never both, never neither."""
    plan, under_way, known, now = SvidPlan(), set(), set(), 0.0
    for name, number in script:
        entry_id = f"e{number}"
        now += 1.0
        match name:
            case "schedule":
                plan.schedule(entry_id, now)
                known.add(entry_id)
                under_way.discard(entry_id)
            case "drop":
                plan.drop(entry_id)
                known.discard(entry_id)
                under_way.discard(entry_id)
            case "take":
                taken = plan.take(now, number + 1)
                assert not set(taken) & under_way
                under_way |= set(taken)
            case "failed":
                plan.failed(entry_id, now, jitter=0.0)
                under_way.discard(entry_id)
            case "put_back":
                plan.put_back(entry_id, now)
                under_way.discard(entry_id)
            case _:
                getattr(plan, name)(entry_id, *([now] if name == "hasten" else []))
    rest = set(plan.take(now + 10_000, 100))
    assert rest | under_way == known
    assert not rest & under_way


@given(entries)
def test_a_change_of_selectors_is_a_change(entry):
    other = replace(entry, selectors=entry.selectors | {Selector("unix", "gid:9")})
    assert difference({entry.id: entry}, {entry.id: other}).changed
