"""How long something is valid, and when to replace it. Time and chance are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

BACKDATE = timedelta(seconds=10)
"""How far a certificate's notBefore lies before the moment of issue, for clocks that are a little behind."""

CLOCK_SKEW = timedelta(minutes=5)
"""How far this machine's clock may be behind an issuer's: what begins within it is taken from a server (R19)."""

JITTER_SHARE = 0.1
"""The largest shift of a renewal, as a share of half the lifetime."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The half-open interval [start, end) between two aware UTC times."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        _check_utc(self.start)
        _check_utc(self.end)
        if self.end < self.start:
            raise ValueError("a lifetime cannot end before it starts")

    @property
    def duration(self) -> timedelta:
        """From start to end."""
        return self.end - self.start

    def contains(self, moment: datetime) -> bool:
        """Whether `moment` lies inside; the end does not."""
        return self.start <= moment < self.end

    def remaining(self, now: datetime) -> timedelta:
        """What is left at `now`; zero after the end."""
        return max(self.end - now, timedelta(0))


def renew_at(
    issued_at: datetime, not_after: datetime, *, jitter: float, floor: timedelta = timedelta(seconds=1)
) -> datetime:
    """When to replace an SVID: half-way from issue to expiry, shifted by up to ten percent of that half.

    `issued_at` is the moment of issue, not the backdated notBefore. `jitter` in [-1, 1] is drawn once per SVID by the
    caller. The answer is never sooner than `floor` after the issue, so that no lifetime leads to a busy loop.
    """
    _check_utc(issued_at)
    _check_utc(not_after)
    if not -1 <= jitter <= 1:
        raise ValueError("jitter lies in [-1, 1]")
    half = (not_after - issued_at) / 2
    return max(issued_at + floor, issued_at + half + half * (JITTER_SHARE * jitter))


def _check_utc(moment: datetime) -> None:
    if moment.utcoffset() != timedelta(0):
        raise ValueError("only aware UTC times are compared")
