"""Lifetimes and the renewal schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from spiffe_core.lifetime import BACKDATE, Lifetime, renew_at

T0 = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_lifetime_holds_its_start_and_not_its_end():
    life = Lifetime(T0, T0 + HOUR)
    assert life.duration == HOUR
    assert life.contains(T0)
    assert not life.contains(T0 + HOUR)
    assert not life.contains(T0 - timedelta(microseconds=1))


def test_what_remains_is_never_negative():
    life = Lifetime(T0, T0 + HOUR)
    assert life.remaining(T0 + HOUR / 4) == HOUR * 3 / 4
    assert life.remaining(T0 + 2 * HOUR) == timedelta(0)


@pytest.mark.parametrize(
    "moment",
    [datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=timezone(HOUR))],  # noqa: DTZ001  # what must be refused
    ids=["naive", "another zone"],
)
def test_only_aware_utc_times_are_taken(moment):
    with pytest.raises(ValueError, match="aware UTC"):
        Lifetime(moment, T0)
    with pytest.raises(ValueError, match="aware UTC"):
        Lifetime(T0, moment)
    with pytest.raises(ValueError, match="aware UTC"):
        renew_at(T0, moment, jitter=0)
    with pytest.raises(ValueError, match="aware UTC"):
        renew_at(moment, T0, jitter=0)


def test_a_lifetime_does_not_end_before_it_starts():
    with pytest.raises(ValueError, match="cannot end before"):
        Lifetime(T0, T0 - HOUR)


def test_renewal_is_half_way_from_issue_to_expiry():
    """Half counts from the issue, not from the backdated notBefore: a 12 s SVID is renewed after 6 s, not after 1 s."""
    ttl = timedelta(seconds=12)
    assert renew_at(T0, T0 + ttl, jitter=0) == T0 + ttl / 2
    assert timedelta(seconds=10) == BACKDATE


@pytest.mark.parametrize(("jitter", "minutes"), [(-1, 27), (0, 30), (1, 33)])
def test_jitter_shifts_the_renewal_by_a_tenth_of_half(jitter, minutes):
    assert renew_at(T0, T0 + HOUR, jitter=jitter) == T0 + timedelta(minutes=minutes)


def test_a_tiny_or_negative_lifetime_does_not_make_a_busy_loop():
    assert renew_at(T0, T0 + timedelta(seconds=1), jitter=-1) == T0 + timedelta(seconds=1)
    assert renew_at(T0, T0 - HOUR, jitter=0) == T0 + timedelta(seconds=1)
    assert renew_at(T0, T0 + HOUR, jitter=0, floor=2 * HOUR) == T0 + 2 * HOUR


@pytest.mark.parametrize("jitter", [-1.01, 1.01, float("nan")])
def test_jitter_out_of_range_is_a_mistake_of_the_caller(jitter):
    with pytest.raises(ValueError, match="jitter"):
        renew_at(T0, T0 + HOUR, jitter=jitter)
