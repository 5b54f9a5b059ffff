"""A server whose view of the database stands still for as long as a test wants."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager


@asynccontextmanager
async def held_back(store):
    """The store's follower reads nothing inside the block; afterwards it catches up at once."""
    follower = store._follower
    asked = threading.Event()

    def step():
        asked.set()
        return False

    follower.step = step
    follower.wake()
    while not asked.is_set():  # a step that was under way has ended by now
        await asyncio.sleep(0.002)
    try:
        yield
    finally:
        del follower.step
        follower.wake()


async def seen(store, condition, seconds=10.0):
    """Wait until the state in memory fulfils `condition`."""
    async with asyncio.timeout(seconds):
        while not condition(store.state.value):
            await store.state.changed(store.state.version)


@asynccontextmanager
async def lagging(store, seconds):
    """Everything the store's follower learns, it learns so many seconds late."""
    follower = store._follower
    step = follower.step

    def late():
        time.sleep(seconds)  # the follower's own thread
        return step()

    follower.step = late
    try:
        yield
    finally:
        del follower.step
