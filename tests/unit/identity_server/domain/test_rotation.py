"""When authorities change: spire_features section 13.1, R17, R18, R31."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from identity_server.domain.authority import Authority, Slots, Status, grace
from identity_server.domain.rotation import (
    DAY,
    Do,
    Step,
    activate_after,
    clock_jump,
    expired_authorities,
    expiry_floor,
    longest_whole_ttl,
    next_step,
    prepare_after,
)

T0 = 1_000_000
HOUR = 3_600


def make_authority(authority_id: str, slot: Any, status: Status, *, issued_at: int = T0, life: int = DAY) -> Authority:
    return Authority(
        authority_id=authority_id,
        server_id="s1",
        slot=slot,
        status=status,
        certificate=b"",
        issued_at=issued_at,
        not_after=issued_at + life,
        published_at=issued_at,
    )


ACTIVE = make_authority("a", "A", Status.ACTIVE)
PREPARED = make_authority("b", "B", Status.PREPARED, issued_at=T0 + 12 * HOUR)
OLD = make_authority("o", "B", Status.OLD, issued_at=T0 - DAY)
ALL = frozenset({"a", "b", "o"})


@pytest.mark.parametrize(
    ("life", "prepare", "activate"),
    [
        (DAY, 12 * HOUR, 20 * HOUR),
        (60, 30, 50),
        (7 * DAY, 3.5 * DAY, 7 * DAY - 28 * HOUR),
        (365 * DAY, 335 * DAY, 358 * DAY),
        (60 * DAY, 30 * DAY, 53 * DAY),
        (42 * DAY, 21 * DAY, 35 * DAY),
    ],
)
def test_the_schedule_is_spires(life: int, prepare: float, activate: float) -> None:
    """Half of the life but at most 30 days before the end; a sixth but at most 7 days; from issue, not from notBefore."""
    authority = make_authority("a", "A", Status.ACTIVE, life=life)
    assert (T0 + prepare, T0 + activate) == (prepare_after(authority), activate_after(authority))


@pytest.mark.parametrize(("life", "longest"), [(DAY, 4 * HOUR), (60, 10), (365 * DAY, 7 * DAY)])
def test_svids_up_to_a_sixth_of_the_authoritys_life_are_never_cut_short(life: int, longest: int) -> None:
    assert longest == longest_whole_ttl(life)


SITUATIONS = {
    "an empty domain prepares": (Slots(), T0, Do.PREPARE, ""),
    "a prepared first authority is activated at once": (
        Slots(replace(ACTIVE, status=Status.PREPARED)),
        T0,
        Do.ACTIVATE,
        "a",
    ),
    "a young authority is left alone": (Slots(ACTIVE), T0 + 12 * HOUR, Do.NOTHING, ""),
    "half-way the next is prepared": (Slots(ACTIVE), T0 + 12 * HOUR + 1, Do.PREPARE, ""),
    "an old one in the other slot is no obstacle": (Slots(ACTIVE, OLD), T0 + 12 * HOUR + 1, Do.PREPARE, ""),
    "a prepared one waits for its time": (Slots(ACTIVE, PREPARED), T0 + 20 * HOUR, Do.NOTHING, ""),
    "then it is activated": (Slots(ACTIVE, PREPARED), T0 + 20 * HOUR + 1, Do.ACTIVATE, "b"),
    "but not before it settled": (
        Slots(ACTIVE, replace(PREPARED, published_at=T0 + 20 * HOUR)),
        T0 + 20 * HOUR + 5,
        Do.NOTHING,
        "",
    ),
    "R17: an expired authority is replaced": (Slots(ACTIVE), T0 + DAY, Do.PREPARE, ""),
    "R17: by the prepared one, if it lives": (Slots(ACTIVE, PREPARED), T0 + DAY + 1, Do.ACTIVATE, "b"),
    "R23: a prepared one that expired too is retired": (Slots(ACTIVE, PREPARED), T0 + 3 * DAY, Do.RETIRE, "b"),
    "R18: two hours back leave a day-old authority alone": (
        Slots(replace(ACTIVE, issued_at=T0 - 20 * HOUR)),
        T0 - 2 * HOUR,
        Do.NOTHING,
        "",
    ),
    "R18: a clock before its birth makes a new one": (Slots(ACTIVE), T0 - 11, Do.PREPARE, ""),
    "the backdated ten seconds count as its life": (Slots(ACTIVE), T0 - 10, Do.NOTHING, ""),
    "after a retirement the other one takes over": (Slots(OLD, PREPARED), T0 + 13 * HOUR, Do.ACTIVATE, "b"),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_next_step(name: str) -> None:
    slots, now, do, whom = SITUATIONS[name]
    step = next_step(slots, now, bundle=ALL)
    assert (do, whom) == (step.do, step.authority.authority_id if step.authority else ""), step


def test_an_authority_taken_out_of_the_bundle_is_retired_not_republished() -> None:
    """A root that an operator removed does not come back by itself."""
    assert Step(Do.RETIRE, "it or its root is tainted or not in the stored bundle", ACTIVE) == next_step(
        Slots(ACTIVE), T0, bundle=frozenset({"o"})
    )
    assert Do.RETIRE is next_step(Slots(ACTIVE, PREPARED), T0 + 13 * HOUR, bundle=frozenset({"a"})).do


def test_a_settled_authority_is_known_by_the_monotonic_clock_too() -> None:
    late = replace(PREPARED, published_at=T0 + 20 * HOUR + 5)
    slots = Slots(ACTIVE, late)
    assert Do.NOTHING is next_step(slots, T0 + 20 * HOUR + 6, bundle=ALL, waited=9.0).do
    assert Do.ACTIVATE is next_step(slots, T0 + 20 * HOUR + 6, bundle=ALL, waited=10.0).do


@pytest.mark.parametrize(
    ("after", "waited", "seconds"), [(0, 0.0, 60), (11, 0.0, 49), (0, 11.0, 49), (61, 0.0, 0), (-5, 2.0, 58)]
)
def test_who_is_late_is_waited_for_until_a_minute_after_publication(after: int, waited: float, seconds: float) -> None:
    """A15, by whichever clock is ahead."""
    fresh = replace(PREPARED, published_at=T0 + HOUR)
    assert grace(Slots(ACTIVE, fresh), fresh, T0 + HOUR + after, waited) == seconds


def test_nobody_is_waited_for_while_the_active_authority_ends() -> None:
    fresh = replace(PREPARED, published_at=ACTIVE.not_after - 50)
    assert grace(Slots(ACTIVE, fresh), fresh, ACTIVE.not_after - 40, 10.0) == 0
    assert grace(Slots(fresh), fresh, T0, 0.0) == 0


def test_only_old_authorities_leave_the_journal() -> None:
    assert expired_authorities([ACTIVE, OLD, PREPARED], T0 + 10 * DAY) == (OLD,)
    assert expired_authorities([OLD], OLD.not_after + DAY) == ()


@pytest.mark.parametrize(
    ("wall", "monotonic", "jump"), [(10, 10, 0), (70, 10, 0), (71, 10, 61), (90_010, 10, 90_000), (-7_190, 10, -7_200)]
)
def test_a_clock_jump_is_more_than_a_minute_against_the_monotonic_clock(
    wall: float, monotonic: float, jump: float
) -> None:
    assert jump == clock_jump(wall, monotonic)


@pytest.mark.parametrize(
    ("before", "now", "floor"),
    [
        (T0, T0, 0),
        (T0, T0 + 5, 0),
        (T0, T0 - 2 * HOUR, T0 + 60),
        (T0, T0 - 3 * HOUR, T0 + 60),
        (T0, T0 - 3 * HOUR - 1, 0),
        (0, T0, 0),
    ],
)
def test_after_a_small_step_back_svids_end_no_sooner_than_earlier_ones(before: int, now: int, floor: int) -> None:
    """R18. After a big step back the earlier time was the wrong one."""
    assert floor == expiry_floor(before, now, 60)
