"""The event loop's watchdog (architecture A7, R16)."""

import asyncio
import logging
import threading
import time

from spiffe_core.runtime.watchdog import Watchdog


def watch(**over):
    return Watchdog(time.monotonic, **{"beat": 0.005, "slow": 0.05, "blocked": 0.12, **over})


def hold_up_the_loop(until, seconds=10.0):
    """Block this thread until somebody else says so."""
    assert until.wait(seconds)


async def test_a_loop_that_answers_is_neither_slow_nor_blocked():
    dog = watch(slow=5.0)
    dog.start()
    await asyncio.sleep(0.05)
    assert not dog.blocked
    assert dog.lag < 2.0
    assert dog.blocks == 0
    dog.close()
    dog.close()


async def test_a_blocked_loop_is_seen_from_outside_and_logged_with_its_stack(caplog):
    """R16: while the loop cannot answer, other threads see it blocked; the log says in which function it hangs."""
    dog = watch()
    dog.start()
    seen = threading.Event()

    def look():
        while not (dog.blocked and "serves nobody" in caplog.text):
            time.sleep(0.005)
        seen.set()

    with caplog.at_level(logging.WARNING):
        looker = threading.Thread(target=look)
        looker.start()
        hold_up_the_loop(seen)
        assert dog.blocked
        assert dog.lag > 0.1
        looker.join()
        async with asyncio.timeout(5):
            while dog.blocked or "was held up" not in caplog.text:
                await asyncio.sleep(0.005)
    dog.close()
    assert dog.blocks == 1
    messages = [record.getMessage() for record in caplog.records]
    assert "the event loop is held up" in messages
    assert "the event loop is blocked; this process serves nobody" in messages
    (stack,) = (record.facts["stack"] for record in caplog.records if record.levelno == logging.CRITICAL)
    assert "hold_up_the_loop" in stack


def test_a_closed_loop_is_watched_no_more():
    dog = watch()

    async def once():
        dog.start()

    asyncio.run(once())
    dog._thread.join(5)
    assert not dog._thread.is_alive()
    assert not dog.blocked


def test_closing_without_a_start_does_nothing():
    dog = watch()
    dog.close()
    assert dog.lag == 0.0
