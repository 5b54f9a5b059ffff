"""Clock jumps neither storm nor stop anything (R17 to R19)."""

import asyncio
from datetime import timedelta

import pytest

from node_agent.services.steady_time import SteadyTime
from spiffe_core.clock import SystemClock
from tests.doubles.clock import FakeClock


def test_it_goes_with_time():
    clock = FakeClock()
    steady = SteadyTime(clock)
    begin = steady.now()
    clock.advance(100)
    assert steady.now() - begin == 100


def test_a_leap_of_the_wall_clock_makes_things_due():
    """The machine slept for an hour: what became due meanwhile is due now."""
    clock = FakeClock()
    steady = SteadyTime(clock)
    due = steady.at(clock.now() + timedelta(minutes=30))
    clock.jump(3600)
    assert steady.now() >= due


def test_a_clock_set_back_delays_nothing():
    """R18: timers go on."""
    clock = FakeClock()
    steady = SteadyTime(clock)
    due = steady.at(clock.now() + timedelta(minutes=30))
    clock.jump(-7200)
    assert steady.now() < due
    clock.advance(1800)
    assert steady.now() >= due


def test_a_clock_set_forward_and_back_does_not_repeat_the_leap():
    clock = FakeClock()
    steady = SteadyTime(clock)
    begin = steady.now()
    for seconds in (3600, -3600, 3600, -3600):
        clock.jump(seconds)
        steady.now()
    assert steady.now() - begin == 7200


def test_small_differences_are_no_leap():
    clock = FakeClock()
    steady = SteadyTime(clock)
    begin = steady.now()
    clock.jump(1.5)
    assert steady.now() == begin


@pytest.mark.parametrize("seconds", [-7200, 7200])
def test_a_jump_is_said_once_and_by_how_much(seconds, caplog):
    """R19: the operator finds it in the agent's log beside what it leads to."""
    clock = FakeClock()
    steady = SteadyTime(clock)
    clock.jump(seconds)
    steady.now()
    steady.now()
    assert [record.getMessage().count(f"moved by {seconds:+d} s") for record in caplog.records] == [1]


def test_a_correction_by_seconds_is_not_worth_a_word(caplog):
    clock = FakeClock()
    steady = SteadyTime(clock)
    clock.jump(30)
    steady.now()
    assert not caplog.records


async def test_a_wait_ends_when_woken_and_clears_the_wake():
    steady, wake = SteadyTime(SystemClock()), asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, wake.set)
    begin = asyncio.get_running_loop().time()
    await steady.wait(steady.now() + 60, wake)
    assert asyncio.get_running_loop().time() - begin < 4
    assert not wake.is_set()


async def test_a_wait_ends_at_its_time():
    steady = SteadyTime(SystemClock())
    begin = steady.now()
    await steady.wait(begin + 0.02, asyncio.Event())
    assert steady.now() >= begin + 0.02


async def test_a_wait_for_the_past_returns_at_once_and_takes_the_wake_with_it():
    steady, wake = SteadyTime(SystemClock()), asyncio.Event()
    wake.set()
    await steady.wait(steady.now() - 1, wake)
    assert not wake.is_set()
    wake.set()
    await steady.wait(steady.now() - 1, wake, keep=True)
    assert wake.is_set()


async def test_whoever_waits_for_the_past_again_and_again_lets_others_have_a_turn():
    """A loop over something that cannot be done although it is due must never hold the event loop."""
    steady, turns = SteadyTime(FakeClock()), []
    asyncio.get_running_loop().call_soon(turns.append, "another's")
    for _ in range(3):
        await steady.wait(steady.now() - 1, asyncio.Event())
    assert turns == ["another's"]
