"""Snapshots of entries: what to fetch, how two differ, who matches."""

from dataclasses import replace

from node_agent.domain import entry_cache
from node_agent.domain.entry_cache import (
    AudienceIndex,
    EntryIndex,
    Listing,
    Stamp,
    difference,
    merge,
    stamp_of,
    to_fetch,
)
from tests.builders import make_entry, selectors


def by_id(*entries):
    return {entry.id: entry for entry in entries}


A = make_entry(id="a", selectors=["unix:uid:1"])
B = make_entry(id="b", selectors=["unix:uid:1", "unix:gid:2"], spiffe_id="/b")


def test_new_and_changed_entries_are_fetched_known_ones_are_not():
    """spire_wire 5.3 rule 5."""
    known = {"a": Stamp(1, 10), "b": Stamp(1, 10)}
    seen = {"a": Stamp(1, 10), "b": Stamp(2, 10), "c": Stamp(0, 5)}
    assert to_fetch(known, seen) == ["b", "c"]


def test_an_entry_deleted_and_made_anew_under_its_id_is_fetched():
    """R47: the revision repeats, the creation time does not."""
    assert to_fetch({"a": Stamp(0, 10)}, {"a": Stamp(0, 11)}) == ["a"]


def test_merge_drops_what_is_absent_and_ignores_what_nobody_listed():
    listing = Listing(frozenset({"b"}), (B, make_entry(id="stranger")))
    assert merge(by_id(A), listing) == by_id(B)


def test_merge_keeps_what_was_not_sent_again():
    assert merge(by_id(A, B), Listing(frozenset({"a", "b"}), ())) == by_id(A, B)


def test_a_listing_without_news_leaves_the_snapshot_as_it_is():
    """A sync that brings nothing costs nothing."""
    known = by_id(A, B)
    assert merge(known, Listing(frozenset({"a", "b"}), ())) is known
    assert merge(known, Listing(frozenset({"a", "b", "stranger"}), ())) is known
    assert merge(known, Listing(frozenset({"b"}), ())) == by_id(B)


def test_a_difference_names_each_side():
    newer = replace(B, revision_number=1)
    diff = difference(by_id(A, B), by_id(newer, make_entry(id="c")))
    assert [entry.id for entry in diff.added] == ["c"]
    assert diff.changed == ((B, newer),)
    assert diff.removed == (A,)
    assert [entry.id for entry in diff.touched()] == ["c", "b", "b", "a"]


def test_no_difference_is_false():
    assert not difference(by_id(A, B), by_id(A, B))


def test_the_index_follows_changes():
    index = EntryIndex()
    index.apply(difference({}, by_id(A, B)))
    both = selectors("unix:uid:1", "unix:gid:2", "unix:user:x")
    assert [entry.id for entry in index.matching(both)] == ["a", "b"]
    assert [entry.id for entry in index.matching(selectors("unix:uid:1"))] == ["a"]
    moved = replace(A, selectors=selectors("unix:uid:9"), revision_number=1)
    index.apply(difference(by_id(A, B), by_id(moved)))
    assert index.matching(both) == ()
    assert index.matching(selectors("unix:uid:9")) == (moved,)


def test_kept_answers_end_with_the_snapshot():
    index = EntryIndex()
    index.apply(difference({}, by_id(A)))
    assert index.matching(A.selectors) == (A,)
    assert index.matching(A.selectors) is index.matching(A.selectors)
    index.apply(difference(by_id(A), {}))
    assert index.matching(A.selectors) == ()


def test_kept_answers_are_bounded(monkeypatch):
    monkeypatch.setattr(entry_cache, "MOST_FOUND", 4)
    index = EntryIndex()
    for number in range(20):
        assert index.matching(selectors(f"unix:uid:{number}")) == ()
        assert len(index._found) <= 4


def test_an_emptied_index_keeps_nothing():
    index = EntryIndex()
    index.apply(difference({}, by_id(A, B)))
    index.apply(difference(by_id(A, B), {}))
    assert not index._under
    assert not index._anchor


def test_entries_stand_under_the_selector_few_share():
    """A thousand entries of one user are not all asked about for each of its processes."""
    index = EntryIndex()
    many = by_id(*(make_entry(id=f"e{n}", selectors=["unix:uid:1", f"unix:path:/bin/{n}"]) for n in range(100)))
    index.apply(difference({}, many))
    assert max(map(len, index._under.values())) <= 2


def test_audiences_are_found_by_entry():
    index = AudienceIndex()
    wide, narrow = selectors("unix:uid:1", "unix:gid:2"), selectors("unix:uid:1")
    index.add(wide)
    index.add(narrow)
    assert set(index.matched_by(A)) == {wide, narrow}
    assert index.matched_by(B) == [wide]
    index.discard(wide)
    assert index.matched_by(B) == []
    index.discard(narrow)
    assert not index._having


def test_a_stamp_is_revision_and_creation():
    assert stamp_of(make_entry(revision_number=3, created_at=7)) == Stamp(3, 7)


def test_a_removal_of_what_was_never_there_is_no_matter():
    index, audiences = EntryIndex(), AudienceIndex()
    index.apply(difference(by_id(A), {}))
    audiences.discard(selectors("unix:uid:1"))
    assert index.matching(selectors("unix:uid:1")) == ()
