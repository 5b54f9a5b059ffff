"""Watch: the latest value, and a way to wait for the next. Slow readers skip, they never queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Watch(Generic[T]):
    """Broadcasts the latest value to any number of readers. Belongs to the event loop's thread.

    `publish` asserts that it runs on the loop that reads: a publish from another thread would wake its readers late.
    Other threads use `loop.call_soon_threadsafe(watch.publish, value)`.
    """

    __slots__ = ("_loop", "_next", "listeners", "value", "version")

    def __init__(self, value: T) -> None:
        self.value = value
        self.version = 0
        self.listeners: list[Callable[[T], None]] = []
        """Called with every value, none skipped, before any reader runs; they must not raise and not take long."""
        self._next: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def publish(self, value: T) -> None:
        """Make `value` the latest and wake every reader."""
        if self._loop is not None:
            assert asyncio.get_running_loop() is self._loop, "publish() belongs to the loop's thread"
        self.value = value
        self.version += 1
        for listener in self.listeners:
            listener(value)
        if self._next is not None:
            done, self._next = self._next, None
            done.set()

    async def changed(self, since: int) -> int:
        """Wait until `version` differs from `since`; return the new version."""
        self._loop = asyncio.get_running_loop()
        while self.version == since:
            if self._next is None:
                self._next = asyncio.Event()
            await self._next.wait()
        return self.version

    async def updates(self) -> AsyncIterator[T]:
        """The present value at once, then each newer one the reader is ready for."""
        version = self.version
        yield self.value
        while True:
            version = await self.changed(version)
            yield self.value
