"""Who is entitled to what (spire_features sections 15.2 and 15.3, architecture A10)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from spiffe_core.entitlement import (
    Granted,
    Judgement,
    applicable,
    covers,
    explain,
    judge,
    matching,
    reachable,
    reachable_parents,
    unique_hints,
)
from tests.builders import make_entry, selectors


@dataclass(frozen=True)
class Record:
    """As compact as the server's."""

    id: str
    path: str
    parent: str


def below(*records: Record):
    def children(parent: str) -> list[Record]:
        return [record for record in records if record.parent == parent]

    return children


def ids(granted) -> list[str]:
    return [grant.entry.id for grant in granted]


def path_of(record: Record) -> str:
    return record.path


WEB = Record("web", "/web", "/agent")
SUB = Record("sub", "/web/sub", "/web")
POOL = Record("pool", "/db", "/pool")
FOREIGN = Record("foreign", "/x", "/other-agent")


def test_an_agent_gets_its_children_and_their_children():
    assert ids(reachable(["/agent"], below(WEB, SUB, POOL, FOREIGN), path_of)) == ["web", "sub"]


def test_the_names_of_aliases_are_further_parents():
    assert sorted(ids(reachable(["/agent", "/pool"], below(WEB, SUB, POOL, FOREIGN), path_of))) == [
        "pool",
        "sub",
        "web",
    ]


def test_each_grant_says_through_which_parent_it_came():
    granted = reachable(["/agent"], below(WEB, SUB), path_of)
    assert granted == (Granted(WEB, "/agent"), Granted(SUB, "/web"))


def test_cycles_end():
    """An entry may be its own ancestor."""
    loop = (Record("a", "/b", "/a"), Record("b", "/a", "/b"), Record("self", "/b", "/b"))
    assert sorted(ids(reachable(["/a"], below(*loop), path_of))) == ["a", "b", "self"]
    assert sorted(reachable_parents(["/a", "/a"], below(*loop), path_of)) == ["/a", "/b"]


def test_every_parent_is_asked_a_bounded_number_of_times():
    asked = []

    def children(parent: str) -> list[Record]:
        asked.append(parent)
        return [Record(f"{parent}-{n}", "/shared", parent) for n in range(5)]

    assert len(reachable(["/a", "/b"], children, path_of)) == 15
    assert sorted(asked) == ["/a", "/a", "/b", "/b", "/shared", "/shared"]


def test_nobody_is_entitled_to_nothing():
    assert reachable([], below(WEB), path_of) == ()
    assert reachable(["/unknown"], below(WEB), path_of) == ()


def test_an_alias_applies_when_all_its_selectors_are_the_nodes():
    node = selectors("aws:zone:a", "aws:tag:web")
    aliases = {
        "both": node,
        "zone": selectors("aws:zone:a"),
        "other": selectors("aws:zone:b"),
        "one missing": selectors("aws:zone:a", "aws:tag:db"),
        "none": frozenset(),
    }
    assert applicable(aliases, node, aliases.__getitem__) == ("both", "zone")


HELD = selectors("unix:uid:1", "unix:gid:1", "unix:path:/bin/a")


@pytest.mark.parametrize(
    ("required", "expected"),
    [
        (("unix:uid:1",), Judgement(True, (), tuple(sorted(HELD - selectors("unix:uid:1"))))),
        (tuple(map(str, HELD)), Judgement(True)),
        (
            ("unix:uid:2", "unix:gid:1"),
            Judgement(
                False, tuple(selectors("unix:uid:2")), tuple(sorted(selectors("unix:uid:1", "unix:path:/bin/a")))
            ),
        ),
        ((), Judgement(False, (), tuple(sorted(HELD)))),
    ],
    ids=["subset", "equal", "one missing", "nothing required"],
)
def test_a_judgement_names_what_is_missing_and_what_is_beyond(required, expected):
    assert judge(selectors(*required), HELD) == expected


def test_requiring_nothing_is_not_an_open_door():
    """Nothing to check is a failure."""
    assert not covers(HELD, frozenset())
    assert not covers(frozenset(), frozenset())
    assert covers(HELD, HELD)


ENTRIES = (
    make_entry(id="c", selectors={"unix:uid:1"}),
    make_entry(id="a", selectors={"unix:uid:1", "unix:gid:1"}),
    make_entry(id="b", selectors={"unix:uid:2"}),
    make_entry(id="d", selectors={"unix:uid:1", "unix:gid:2"}),
)


def test_a_workload_gets_the_entries_it_covers_by_id():
    """The first is the default identity."""
    assert [entry.id for entry in matching(ENTRIES, HELD)] == ["a", "c"]
    assert matching(ENTRIES, frozenset()) == ()


def test_explanations_agree_with_the_answer_and_cover_every_entry():
    verdicts = explain(ENTRIES, HELD)
    assert [verdict.entry.id for verdict in verdicts] == ["a", "b", "c", "d"]
    assert [verdict.entry.id for verdict in verdicts if verdict.matched] == ["a", "c"]
    assert [str(missing) for missing in verdicts[1].missing] == ["unix:uid:2"]
    assert [str(missing) for missing in verdicts[3].missing] == ["unix:gid:2"]
    assert [str(surplus) for surplus in verdicts[2].surplus] == ["unix:gid:1", "unix:path:/bin/a"]


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ([("a", "x", 2), ("b", "x", 1), ("c", "y", 3)], ["b", "c"]),
        ([("a", "x", 1), ("b", "x", 1)], ["a"]),
        ([("b", "x", 1), ("a", "x", 1)], ["a"]),
        ([("a", "", 1), ("b", "", 1)], ["a", "b"]),
        ([], []),
    ],
    ids=["the oldest keeps the hint", "tie: lower id", "tie, other order", "no hint is no conflict", "nothing"],
)
def test_a_hint_stands_once_in_a_response(entries, kept):
    """WAPI-24, N-C-23, spire_features section 15.3: entries may share a hint; a workload never sees it twice."""
    made = [make_entry(id=entry_id, hint=hint, created_at=created) for entry_id, hint, created in entries]
    assert [entry.id for entry in unique_hints(made)] == kept
