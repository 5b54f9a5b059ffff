"""When an authority is prepared, activated and retired: pure, time is an argument (spire_features section 13.1).

With lifetime = not_after - issued_at (the backdated start does not count), the next authority is prepared when less
than min(lifetime/2, 30 days) are left and activated when less than min(lifetime/6, 7 days) are left, so SVIDs of up to
that length are never cut short. The rules are the same for X.509 authorities and for the keys of JWT- and WIT-SVIDs; an
expired authority leaves the bundle a day after its end (`domain.published`).

Two repairs come first. A clock that jumped over the active authority's life in either direction makes it unusable: the
next one is prepared, published and activated without waiting (R17, R23). And an authority that somebody tainted or took
out of the stored bundle signs no more and is not put back.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from identity_server.domain.authority import Authority, Slots, Status, settled, usable
from identity_server.domain.published import PRUNE_AFTER

DAY = 86_400
MAX_PREPARE_AHEAD = 30 * DAY
MAX_ACTIVATE_AHEAD = 7 * DAY
CLOCK_JUMP_SECONDS = 60.0
BACKSTEP_SECONDS = 3 * 3_600
"""How far the clock may fall back and SVIDs still end no sooner than those issued before (R18)."""


class Do(enum.Enum):
    """What to do next."""

    NOTHING = "nothing"
    PREPARE = "prepare"
    ACTIVATE = "activate"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Step:
    """One step and why; `authority` is the one to activate or retire."""

    do: Do
    why: str = ""
    authority: Authority | None = None


def prepare_after(active: Authority) -> int:
    """The second after which the next authority is prepared."""
    return active.not_after - min((active.not_after - active.issued_at) // 2, MAX_PREPARE_AHEAD)


def activate_after(active: Authority) -> int:
    """The second after which the next authority is activated."""
    return active.not_after - min((active.not_after - active.issued_at) // 6, MAX_ACTIVATE_AHEAD)


def longest_whole_ttl(lifetime: int) -> int:
    """The longest SVID lifetime that an authority of this lifetime never cuts short."""
    return min(lifetime // 6, MAX_ACTIVATE_AHEAD)


def next_step(slots: Slots, now: int, *, bundle: frozenset[str], waited: float = 0.0) -> Step:
    """The next step at `now`.

    `bundle` are the ids that stand untainted in the stored bundle; `waited` as in `Activate`.
    """
    active, prepared = slots.active, slots.prepared
    for one in (prepared, active):
        if one is not None and one.published_as not in bundle:
            return Step(Do.RETIRE, "it or its root is tainted or not in the stored bundle", one)
    if prepared is not None and not usable(prepared, now):
        return Step(Do.RETIRE, "it is not valid now", prepared)
    if active is None or not usable(active, now):
        why = "there is no active authority" if active is None else _unusable(active, now)
        return Step(Do.PREPARE, why) if prepared is None else Step(Do.ACTIVATE, why, prepared)
    if prepared is None:
        due = now > prepare_after(active)
        return Step(Do.PREPARE, "the active authority is past half of its life") if due else Step(Do.NOTHING)
    if now > activate_after(active) and settled(slots, prepared, now, waited):
        return Step(Do.ACTIVATE, "the active authority nears its end", prepared)
    return Step(Do.NOTHING)


def expired_authorities(journal: Iterable[Authority], now: int) -> tuple[Authority, ...]:
    """Old authorities that expired more than a day ago: their slots can be emptied."""
    return tuple(one for one in journal if one.status is Status.OLD and one.not_after + PRUNE_AFTER < now)


def clock_jump(wall_seconds: float, monotonic_seconds: float) -> float:
    """By how much the wall clock jumped between two looks, 0.0 if it went along with the monotonic clock."""
    jump = wall_seconds - monotonic_seconds
    return jump if abs(jump) > CLOCK_JUMP_SECONDS else 0.0


def expiry_floor(issued_before: int, now: int, ttl: int) -> int:
    """Before which second a new SVID should not end, given when the newest one was issued (R18).

    0 unless the clock fell back by a little: after a big step back the earlier time was the wrong one.
    """
    return issued_before + ttl if now < issued_before <= now + BACKSTEP_SECONDS else 0


def _unusable(active: Authority, now: int) -> str:
    if now >= active.not_after:
        return "the active authority has expired"
    return "the active authority is not valid yet: the clock went back"
