"""What a provider does with its keys while their source is away, wrong, or says no (WAPI-41)."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from identity_server.domain.oidc_documents import Authority, Documents, Provider
from identity_server.oidc.held_keys import HeldKeys
from spiffe_core.bundle import JwtAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import Forbidden, Unavailable
from spiffe_core.health import Condition, Report
from tests.doubles.clock import FakeClock

KEEP = 3600.0
K1, K2 = (JwtAuthority(name, spki_der(generate(KeyKind.EC_P256).public_key())) for name in ("k1", "k2"))
AWAY = Unavailable("the server cannot be reached")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def changes() -> list[Documents]:
    return []


@pytest.fixture
def held(clock: FakeClock, changes: list[Documents]) -> HeldKeys:
    return HeldKeys(Provider((Authority("oidc.example.org"),)), clock, keep=KEEP, on_change=changes.append)


def ids(held: HeldKeys) -> tuple[str, ...]:
    return held.current().key_ids


def test_nothing_is_served_before_the_source_has_answered(held: HeldKeys) -> None:
    with pytest.raises(Unavailable, match="not known"):
        held.current()
    held.failed(AWAY)
    part = held.part()
    assert part.condition is Condition.FAILED
    assert part.trouble == "no keys are known: the server cannot be reached"
    assert Report((part,)).live, "a restart would not bring the source back"


def test_new_keys_are_served_at_once_and_told_once(held: HeldKeys, changes: list[Documents]) -> None:
    held.loaded([K1])
    held.loaded([K1])
    assert ids(held) == ("k1",)
    held.loaded([K2, K1])
    held.loaded([K1, K2])
    assert ids(held) == ("k1", "k2")
    assert [one.key_ids for one in changes] == [("k1",), ("k1", "k2")]
    assert held.part().condition is Condition.OK


def test_the_last_keys_outlive_an_absence_of_the_source_for_a_bounded_time(held: HeldKeys, clock: FakeClock) -> None:
    """Ready while keys are served, with the trouble in the report; given up after `keep_keys`."""
    held.loaded([K1])
    clock.advance(KEEP / 2)
    held.failed(AWAY)
    assert ids(held) == ("k1",)
    part = held.part()
    assert (part.condition, Report((part,)).ready) == (Condition.DEGRADED, True)
    assert part.detail == {"confirmed_seconds_ago": 1800, "keys": 1}
    clock.advance(KEEP / 2 + 1)
    held.failed(AWAY)
    with pytest.raises(Unavailable, match="too old"):
        held.current()
    assert not Report((held.part(),)).ready
    assert held.part().trouble == "the keys are too old to be served: the server cannot be reached"
    held.loaded([K1])
    assert ids(held) == ("k1",)
    assert held.part().condition is Condition.OK


def test_a_source_that_hangs_without_an_error_is_bounded_too(held: HeldKeys, clock: FakeClock) -> None:
    held.loaded([K1])
    clock.advance(KEEP + 1)
    with pytest.raises(Unavailable):
        held.current()


def test_a_source_that_says_no_is_obeyed_at_once(held: HeldKeys) -> None:
    """WAPI-41: what was taken away is not used any more; the same keys count as new when they come back."""
    held.loaded([K1])
    held.taken_away(Forbidden("no identity issued"))
    with pytest.raises(Unavailable):
        held.current()
    assert held.part().condition is Condition.FAILED
    held.loaded([K1])
    assert ids(held) == ("k1",)


def test_a_wall_clock_that_jumps_changes_nothing(held: HeldKeys, clock: FakeClock) -> None:
    held.loaded([K1])
    clock.jump(10 * KEEP)
    assert ids(held) == ("k1",)


def test_a_trouble_is_logged_when_it_comes_and_when_it_goes(held: HeldKeys, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        held.loaded([K1])
        for _ in range(3):
            held.failed(AWAY)
        held.loaded([K1])
    assert [record.getMessage() for record in caplog.records] == [
        "keys published: 1",
        "the source of the keys gives nothing new: the server cannot be reached",
        "the source of the keys answers again",
    ]


def test_no_keys_at_all_are_an_answer(held: HeldKeys) -> None:
    held.loaded([])
    assert ids(held) == ()
    assert held.part().condition is Condition.OK
