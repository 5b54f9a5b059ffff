"""The authority lifecycle: what may follow what (R1, A15)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from identity_server.domain.authority import (
    MOVES,
    PROPAGATION_SECONDS,
    Activate,
    Activated,
    Authority,
    Command,
    Forget,
    IllegalMove,
    Prepare,
    Prepared,
    Retire,
    Retired,
    Slots,
    Status,
    Taint,
    apply,
    decide,
    key_slot,
    move,
)
from spiffe_core.errors import CorruptState, Kind

NOW = 1_000_000
BOTH = frozenset({"a", "b"})


def make_authority(
    authority_id: str = "a", slot: Any = "A", status: Status = Status.PREPARED, **over: Any
) -> Authority:
    values: dict[str, Any] = {
        "server_id": "s1",
        "certificate": authority_id.encode(),
        "issued_at": NOW,
        "not_after": NOW + 86_400,
        "published_at": NOW,
        **over,
    }
    return Authority(authority_id=authority_id, slot=slot, status=status, **values)


def run(slots: Slots, *commands: Command, now: int = NOW) -> Slots:
    for command in commands:
        for event in decide(slots, command, now):
            slots = apply(slots, event)
    return slots


PREPARED = make_authority()
ACTIVE = make_authority(status=Status.ACTIVE)
OLD = make_authority(status=Status.OLD)
NEXT = make_authority("b", "B")

ALLOWED = {
    "an empty slot takes a new authority": (Slots(), Prepare(PREPARED), Slots(PREPARED)),
    "the first authority signs at once": (Slots(PREPARED), Activate("a", BOTH), Slots(ACTIVE)),
    "activating again changes nothing": (Slots(ACTIVE), Activate("a", BOTH), Slots(ACTIVE)),
    "the next one is prepared beside the active one": (Slots(ACTIVE), Prepare(NEXT), Slots(ACTIVE, NEXT)),
    "an old one makes place": (
        Slots(ACTIVE, replace(NEXT, authority_id="c", status=Status.OLD)),
        Prepare(NEXT),
        Slots(ACTIVE, NEXT),
    ),
    "a lost active key retires its authority": (Slots(ACTIVE), Retire("a"), Slots(OLD)),
    "a lost prepared key retires its authority": (Slots(PREPARED), Retire("a"), Slots(OLD)),
    "retiring again changes nothing": (Slots(OLD), Retire("a"), Slots(OLD)),
    "an old authority is tainted": (Slots(OLD), Taint("a"), Slots(replace(OLD, tainted=True))),
    "tainting again changes nothing": (
        Slots(replace(OLD, tainted=True)),
        Taint("a"),
        Slots(replace(OLD, tainted=True)),
    ),
    "an old authority is forgotten": (Slots(OLD), Forget("a"), Slots()),
}

REFUSED = {
    "nothing is prepared over the active one": (Slots(ACTIVE), Prepare(make_authority("b", "A"))),
    "nothing is prepared over a prepared one": (Slots(PREPARED), Prepare(make_authority("b", "A"))),
    "two are never prepared": (Slots(PREPARED), Prepare(NEXT)),
    "one key never stands in two slots": (Slots(OLD), Prepare(make_authority("a", "B"))),
    "a new authority does not begin active": (Slots(), Prepare(ACTIVE)),
    "a new authority is not expired": (Slots(), Prepare(replace(PREPARED, not_after=NOW))),
    "a new authority is not from the future": (Slots(), Prepare(replace(PREPARED, issued_at=NOW + 11))),
    "an unpublished one does not sign": (Slots(PREPARED), Activate("a", frozenset({"b"}))),
    "an old one does not sign again": (Slots(OLD), Activate("a", BOTH)),
    "an expired one does not sign": (Slots(replace(PREPARED, not_after=NOW)), Activate("a", BOTH)),
    "an unknown one does not sign": (Slots(), Activate("a", BOTH)),
    "it does not sign before it settled": (Slots(ACTIVE, NEXT), Activate("b", BOTH)),
    "the active one is not tainted": (Slots(ACTIVE), Taint("a")),
    "a prepared one is not tainted": (Slots(PREPARED), Taint("a")),
    "the active one is not forgotten": (Slots(ACTIVE), Forget("a")),
    "a prepared one is not forgotten": (Slots(PREPARED), Forget("a")),
    "an unknown one is not retired": (Slots(ACTIVE), Retire("zz")),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_may_happen(name: str) -> None:
    before, command, expected = ALLOWED[name]
    assert expected == run(before, command), name


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_not_happen(name: str) -> None:
    before, command = REFUSED[name]
    with pytest.raises(IllegalMove) as refused:
        decide(before, command, NOW)
    assert refused.value.kind is Kind.PRECONDITION


def test_activation_retires_the_former_in_the_same_decision() -> None:
    """R1: between two events nobody could see two active authorities, nor none."""
    events = decide(Slots(ACTIVE, NEXT), Activate("b", BOTH), NOW + PROPAGATION_SECONDS)
    assert events == (Retired(OLD), Activated(replace(NEXT, status=Status.ACTIVE)))


def test_preparing_names_what_it_replaces() -> None:
    former = make_authority("c", "B", Status.OLD)
    assert (Prepared(NEXT, former),) == decide(Slots(ACTIVE, former), Prepare(NEXT), NOW)


@pytest.mark.parametrize(
    ("now", "waited", "active", "allowed"),
    [
        (NOW + 9, 0.0, ACTIVE, False),
        (NOW + 10, 0.0, ACTIVE, True),
        (NOW + 9, 9.9, ACTIVE, False),
        (NOW - 5, 10.0, ACTIVE, True),
        (NOW + 1, 0.0, replace(ACTIVE, not_after=NOW + 10), True),
        (NOW + 1, 0.0, replace(ACTIVE, not_after=NOW + 11), False),
        (NOW + 1, 0.0, replace(ACTIVE, not_after=NOW + 1), True),
        (NOW + 1, 0.0, replace(ACTIVE, issued_at=NOW + 3_600, not_after=NOW + 9_999), True),
    ],
    ids=[
        "9s",
        "10s",
        "9.9s-monotonic",
        "clock-fell-back",
        "active-ends-first",
        "active-outlasts",
        "active-expired",
        "active-not-yet-valid",
    ],
)
def test_a_new_authority_waits_unless_nothing_else_can_sign(
    now: int, waited: float, active: Authority, allowed: bool
) -> None:
    """A15: ten seconds in the stored bundle; shorter if the active one would expire first."""
    slots, command = Slots(active, NEXT), Activate("b", BOTH, waited)
    if allowed:
        assert run(slots, command, now=now).active.authority_id == "b"  # type: ignore[union-attr]  # it is there
    else:
        with pytest.raises(IllegalMove, match="10 s"):
            decide(slots, command, now)


def test_what_everybody_acknowledged_need_not_wait_but_must_stand_in_the_bundle() -> None:
    """A15."""
    slots = Slots(ACTIVE, NEXT)
    after = run(slots, Activate("b", BOTH, acknowledged=True), now=NOW + 1)
    assert after.active is not None
    assert after.active.authority_id == "b"
    with pytest.raises(IllegalMove, match="bundle"):
        decide(slots, Activate("b", frozenset(), acknowledged=True), NOW + 1)


def test_every_pair_of_status_and_verb_is_decided_by_the_table() -> None:
    verbs = {verb for _, verb in MOVES}
    for status in (None, *Status):
        for verb in verbs:
            if (status, verb) in MOVES:
                assert MOVES[status, verb] is move(status, verb)
            else:
                with pytest.raises(IllegalMove):
                    move(status, verb)


def test_a_journal_becomes_slots_and_other_kinds_are_left_out() -> None:
    jwt = make_authority("j", "A", Status.ACTIVE, kind="jwt")
    slots = Slots.of([NEXT, jwt, ACTIVE])
    assert (ACTIVE, NEXT) == (slots.active, slots.prepared) == (slots["A"], slots["B"])
    assert jwt == Slots.of([NEXT, jwt], "jwt").active


@pytest.mark.parametrize(
    "rows", [(ACTIVE, make_authority("b", "A")), (ACTIVE, make_authority("b", "B", Status.ACTIVE))]
)
def test_an_impossible_journal_is_refused(rows: tuple[Authority, ...]) -> None:
    with pytest.raises(CorruptState, match="restore the database"):
        Slots.of(rows)


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        (Slots(), "A"),
        (Slots(ACTIVE), "B"),
        (Slots(b=make_authority("b", "B", Status.ACTIVE)), "A"),
        (Slots(OLD), "B"),
        (Slots(b=make_authority("b", "B", Status.OLD)), "A"),
        (Slots(OLD, make_authority("b", "B", Status.OLD, not_after=NOW + 1)), "B"),
        (Slots(replace(OLD, not_after=NOW + 1), make_authority("b", "B", Status.OLD)), "A"),
        (Slots(PREPARED, make_authority("b", "B", Status.OLD)), "B"),
        (Slots(OLD, NEXT), "A"),
    ],
)
def test_the_next_authority_is_never_made_where_one_is_in_force(slots: Slots, expected: str) -> None:
    assert expected == slots.free


def test_keys_have_spires_slot_names() -> None:
    assert (key_slot("x509", "A"), NEXT.key_slot) == ("x509-CA-A", "x509-CA-B")
