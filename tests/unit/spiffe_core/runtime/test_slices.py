"""Long work on the loop, in slices (A7)."""

import asyncio

import pytest

from spiffe_core.runtime.slices import Slices


async def test_everything_is_done_in_order():
    assert await Slices().each(lambda one: one * 2, range(1000)) == [2 * one for one in range(1000)]
    assert await Slices().each(str, []) == []


async def test_the_loop_turns_between_slices():
    """A7: others are served while the work goes on."""
    turns = 0
    over = False

    async def other():
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    watching = asyncio.ensure_future(other())
    await Slices(0.0).each(str, range(50))
    over = True
    await watching
    assert turns >= 49


async def test_those_who_share_take_turns():
    """Two long works together hold the loop no longer than one."""
    slices, order = Slices(0.0), []
    await asyncio.gather(*(slices.each(lambda _, who=who: order.append(who), range(5)) for who in "ab"))
    assert order == list("ababababab")


async def test_what_the_work_raises_ends_it_and_frees_the_turn():
    slices = Slices()
    with pytest.raises(ZeroDivisionError):
        await slices.each(lambda one: 1 / one, [1, 0, 2])
    assert await slices.each(str, [1]) == ["1"]
