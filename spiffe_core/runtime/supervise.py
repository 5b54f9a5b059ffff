"""Every task has an owner: the only place that starts one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self


class Supervisor:
    """Named tasks in one group. If one dies of a bug, all stop: a daemon without its rotation loop is worse than none.

    Use as `async with Supervisor() as tasks:`; `tasks.start(coroutine, "name")`; `tasks.stop()` cancels what is left.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:  # noqa: PYI036  # TaskGroup's own types
        await self._group.__aexit__(*exc)

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start one owned task."""
        task = self._group.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self) -> None:
        """Cancel every task that still runs."""
        for task in list(self._tasks):
            task.cancel()


def spawn(coroutine: Coroutine[Any, Any, Any], name: str, keep: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """Start a short task whose owner keeps it in `keep` until it ends (connection splices, single flights)."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    keep.add(task)
    task.add_done_callback(keep.discard)
    return task
