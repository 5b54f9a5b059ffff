"""The bridge to threads: as many at a time as there is work for, none once nobody needs them."""

import asyncio
import gc
import threading
import weakref

import pytest

from spiffe_core.errors import Unavailable
from spiffe_core.runtime.offload import Offload


def alive(name):
    return [one for one in threading.enumerate() if one.name.startswith(f"{name}-")]


async def until(true, seconds=20):
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


async def test_calls_run_side_by_side_up_to_the_limit_and_the_others_in_turn():
    offload, gate, running = Offload("side", 3), threading.Event(), []

    def wait(number):
        running.append(number)
        gate.wait(20)
        return number

    calls = [asyncio.ensure_future(offload(wait, number)) for number in range(5)]
    await until(lambda: len(running) == 3)
    assert len(alive("side")) == 3
    gate.set()
    assert await asyncio.gather(*calls) == [0, 1, 2, 3, 4]


async def test_a_second_call_never_waits_behind_the_first_while_there_is_room():
    """Also the moment an idle thread was given the first."""
    offload, gate = Offload("room", 2), threading.Event()
    await offload(int)
    blocked = asyncio.ensure_future(offload(gate.wait, 20))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(offload(int), 20) == 0
    gate.set()
    assert await blocked


async def test_threads_end_when_nobody_needs_them_and_begin_again():
    offload = Offload("idle", 2, idle_seconds=0.01)
    for _ in range(3):
        assert await asyncio.gather(*(offload(len, "ab") for _ in range(4))) == [2] * 4
        await until(lambda: not alive("idle"))


async def test_calls_that_come_as_a_thread_ends_are_all_answered():
    offload = Offload("edge", 1, idle_seconds=0.0005)
    for number in range(300):
        assert await asyncio.wait_for(offload(int, number), 20) == number
        await asyncio.sleep(0.0005)


async def test_errors_come_back_and_nothing_of_a_call_is_kept():
    offload = Offload("errors", 1)

    class Thing:
        pass

    def fail(thing):
        raise KeyError(type(thing).__name__)

    thing = Thing()
    gone = weakref.ref(thing)
    with pytest.raises(KeyError, match="Thing"):
        await offload(fail, thing)
    assert await offload(int) == 0
    del thing

    def dropped():
        gc.collect()
        return gone() is None

    await until(dropped)


async def test_a_thread_the_system_refuses_is_asked_for_again_at_the_next_call(monkeypatch):
    """R7: at the limit of threads a call is told so; it does not wait for ever, nor do those after the limit is lifted."""
    offload = Offload("scarce", 1)

    class Refused(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as scarce:
        scarce.setattr(threading, "Thread", Refused)
        for _ in range(2):
            with pytest.raises(Unavailable, match="no thread could be started for scarce"):
                await asyncio.wait_for(offload(int), 20)
    assert await asyncio.wait_for(offload(int, 7), 20) == 7


async def test_with_one_thread_refused_those_there_are_do_the_work(monkeypatch):
    offload, gate = Offload("few", 2), threading.Event()
    blocked = asyncio.ensure_future(offload(gate.wait, 20))
    await until(lambda: alive("few"))

    def refuse(_self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refuse)
        waiting = asyncio.ensure_future(offload(int, 7))
        await asyncio.sleep(0)
    gate.set()
    assert await blocked
    assert await asyncio.wait_for(waiting, 20) == 7
