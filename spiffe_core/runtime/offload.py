"""Offload: the one bridge from the event loop to blocking code (architecture A7)."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from spiffe_core.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")


IDLE_SECONDS = 10.0
"""So long a thread waits for more before it ends."""


class Offload:
    """A named pool of at most `threads` daemon threads.

    Daemon threads, so that a call stuck in the kernel (a hanging FUSE mount behind /proc) never keeps a daemon from
    exiting; `concurrent.futures` joins its threads at exit. Threads start when needed, and end when nobody needed them
    for `idle_seconds`: an owner that is gone leaves none behind.
    """

    def __init__(self, name: str, threads: int, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._name = name
        self._limit = threads
        self._idle_seconds = idle_seconds
        self._threads = 0
        self._started = 0
        self._jobs = 0  # under way or waiting
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    async def __call__(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` on a thread of the pool; its result or exception is this call's.

        Raises:
            Unavailable: the system gives no thread to run it on.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()
        call = functools.partial(context.run, functools.partial(fn, *args, **kwargs))

        def settle(outcome: Callable[[Any], None], value: Any) -> None:
            if not done.done():
                outcome(value)

        def run() -> None:
            try:
                value = call()
            except BaseException as error:  # noqa: BLE001  # carried to the awaiting task
                outcome: Callable[[Any], None] = done.set_exception
                carried: Any = (
                    RuntimeError("StopIteration crossed a thread") if isinstance(error, StopIteration) else error
                )
            else:
                outcome, carried = done.set_result, value
            try:
                loop.call_soon_threadsafe(settle, outcome, carried)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

        with self._lock:
            self._jobs += 1
            if self._jobs > self._threads and self._threads < self._limit:
                self._another()
            self._work.put(run)
        return await done

    def _another(self) -> None:
        """Start one more thread. One that the system does not give is not counted: the next call asks again.

        Raises:
            Unavailable: there is none yet that could do the work.
        """
        self._started += 1
        thread = threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                self._jobs -= 1
                raise Unavailable(
                    f"no thread could be started for {self._name}; raise the limit on processes and threads "
                    "(TasksMax, ulimit -u)"
                ) from error
        else:
            self._threads += 1

    def _serve(self) -> None:
        while True:
            try:
                job = self._work.get(timeout=self._idle_seconds)
            except queue.Empty:
                with self._lock:
                    if not self._work.empty():
                        continue
                    self._threads -= 1
                    return
            job()
            with self._lock:
                self._jobs -= 1
            del job  # with the caller's arguments, which would be kept until the next one
