"""Long work on the event loop, a little of it in each turn of the loop.

For work in Python, which holds the interpreter's lock: on a thread it would make the loop win that lock back, at up to
five milliseconds a time, after every system call. Whoever shares a `Slices` takes turns, so that all of them together
hold the loop no longer than one would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

SLICE_SECONDS = 0.001


class Slices:
    """Belongs to the event loop's thread."""

    def __init__(self, seconds: float = SLICE_SECONDS) -> None:
        self._seconds = seconds
        self._turn = asyncio.Lock()

    async def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`work` done for each item, in order. What it raises ends this."""
        loop = asyncio.get_running_loop()
        done: list[R] = []
        rest = iter(items)
        while True:
            async with self._turn:
                until = loop.time() + self._seconds
                for item in rest:
                    done.append(work(item))
                    if loop.time() >= until:
                        break
                else:
                    return done
                await asyncio.sleep(0)
