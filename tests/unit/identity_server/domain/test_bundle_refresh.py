"""When a bundle is fetched again, and where a redirect may lead."""

from datetime import timedelta

import pytest

from identity_server.domain.bundle_refresh import (
    LONGEST_BACK_OFF,
    MAX_BACK_OFF,
    MAX_ERROR,
    RefreshState,
    pause_after,
    redirect_target,
)
from spiffe_core.errors import Unavailable
from tests.builders import make_bundle
from tests.doubles.clock import START


def pause(hint, failures=0, jitter=0.0, **over):
    return pause_after(make_bundle(refresh_hint=hint), failures, jitter, **over).total_seconds()


@pytest.mark.parametrize(
    ("hint", "seconds"), [(0, 300), (1, 60), (60, 60), (600, 600), (86_400, 86_400), (10**9, 86_400)]
)
def test_the_pace_is_the_hint_within_bounds(hint, seconds):
    """FED-06, FED-07, TDB-11, TDB-27, N-B-28."""
    assert pause(hint) == seconds


@pytest.mark.parametrize(("failures", "times"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (10_000, 8)])
def test_a_peer_that_is_down_is_asked_less_often(failures, times):
    """FED-45, N-F-18: never before the next interval, then ever rarer, to eight intervals."""
    assert pause(60, failures) == 60 * times
    assert times <= MAX_BACK_OFF


def test_pauses_grow_to_an_hour_unless_the_interval_is_longer():
    """N-F-18."""
    assert pause(900, 9) == LONGEST_BACK_OFF.total_seconds()
    assert pause(7200, 9) == 7200


def test_without_a_bundle_the_shortest_interval_counts():
    """spire_features section 19.2."""
    assert pause_after(None, 0, 0.0) == timedelta(minutes=1)
    assert pause_after(None, 1, 0.0, timedelta(seconds=5)) == timedelta(seconds=5)
    assert pause(1, floor=timedelta(seconds=5)) == 5


def test_pauses_are_spread():
    assert pause(100, jitter=1.0) == pytest.approx(110)
    assert pause(100, jitter=-1.0) == pytest.approx(90)


def test_what_happened_is_kept():
    state = RefreshState().failed(START, "x" * 5000)
    assert (state.failures, len(state.error), state.fetched_at) == (1, MAX_ERROR, None)
    state = state.failed(START, "again").worked(START, ("odd",))
    assert (state.failures, state.error, state.fetched_at, state.warnings) == (0, "", START, ("odd",))
    assert state.failed(START + timedelta(1), "down").fetched_at == START


URL = "https://fed.test:8443/a/bundle?x=1"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b", "https://fed.test:8443/b"),
        ("b", "https://fed.test:8443/a/b"),
        ("?y", "https://fed.test:8443/a/bundle?y"),
        ("//other.test/b", "https://other.test/b"),
        ("https://other.test:1/b#part", "https://other.test:1/b"),
    ],
)
def test_a_redirect_to_an_endpoint_url_is_one(location, target):
    """FED-33; RFC 9110 section 10.2.2: relative ones too."""
    assert redirect_target(URL, location) == target


NOWHERE = (
    "",
    "http://fed.test/",
    "https://u@fed.test/",
    "https://u:p@fed.test/",
    "file:///x",
    "javascript:x",
    "https://fed.test:0/",
    "https://fed.test:70000/",
    "//[",
    "https://fed.test/\\b",
    "https://fed.test/ b",
    "x" * 3000,
)


@pytest.mark.parametrize("location", NOWHERE, ids=lambda text: text[:30])
def test_a_redirect_to_anything_else_is_not_followed(location):
    """FED-33, N-F-11; what it said is not quoted."""
    with pytest.raises(Unavailable) as caught:
        redirect_target(URL, location)
    assert location == "" or location not in caught.value.public
