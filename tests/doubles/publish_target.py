"""A place for bundles in memory, which can be slow, fail, and be awaited."""

import asyncio
import threading

from identity_server.domain.publication import BundleFormat, Outcome
from identity_server.ports import PublishOrder


class PlaceInMemory:
    """`troubles` are raised first, one for each try; while `open` is clear a try hangs."""

    def __init__(self, name="memory"):
        self.name, self.place = name, f"the place {name}"
        self.troubles, self.written = [], []
        self.tries = 0
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def put(self, ours):
        self.entered.set()
        assert self.open.wait(20)
        try:
            self.tries += 1
            if self.troubles:
                raise self.troubles.pop(0)
            self.written.append(ours)
            return Outcome.WRITTEN
        finally:
            self._loop.call_soon_threadsafe(self._news.set)

    def order(self, form=BundleFormat.SPIFFE, hint=None):
        return PublishOrder(self.name, form, hint, self)

    async def until(self, condition, seconds=20):
        """Wait until `condition(self)` holds."""
        async with asyncio.timeout(seconds):
            while not condition(self):
                self._news.clear()
                await self._news.wait()
                await asyncio.sleep(0)
